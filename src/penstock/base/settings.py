"""The one typed, frozen configuration. ``app.py`` alone makes it; everything else is handed it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Each field's comment is its documentation (docs/reference.md is checked against this class)."""

    data_dir: str  # --data-dir, PENSTOCK_DATA_DIR: database, logs, checkpoints, the local token
    url: str | None = None  # --url, PENSTOCK_URL: the server that the CLI talks to
    token: str | None = None  # PENSTOCK_TOKEN: what it shows; else the data folder's own token
    project: str = "default"  # --project, PENSTOCK_PROJECT
    virtual_env: str | None = None  # VIRTUAL_ENV: the environment that `penstock run` gives a job by default
    conda_prefix: str | None = None  # CONDA_PREFIX: likewise
    host: str = "127.0.0.1"  # --host
    port: int = 7070  # --port; 0 takes a free one
    database_url: str | None = None  # --database-url, PENSTOCK_DATABASE_URL; default: SQLite in the data folder
    local_nodes: int = 1  # --local-nodes: into how many nodes this machine is split
    simulate: tuple[int, int] | None = None  # --simulate: a simulated fleet: nodes, GPUs on each
    simulate_gpu: str = "NVIDIA H100 80GB HBM3"  # --simulate-gpu: the model of those GPUs
    simulate_mig: tuple[int, tuple[str, ...]] | None = None  # --simulate-mig: so many nodes' GPUs are cut into these
    simulate_speed: float = 1.0  # --simulate-speed: how many times as fast simulated jobs' own times pass
    simulate_load: float = 0.0  # --simulate-load: made-up jobs ask for about this part of the fleet's GPUs at any time
    simulate_mtbf: float | None = None  # --simulate-mtbf: seconds between two failures of one node
    simulate_repair: float = 1800.0  # --simulate-repair: seconds until a failed node is back, on average
    job_user: str | None = None  # --job-user, PENSTOCK_JOB_USER: the Unix user of jobs when the server runs as root
    reset_token: bool = False  # --reset-token: a new token in the data folder; the one before it opens nothing any more
    tls_cert: str | None = None  # --tls-cert
    tls_key: str | None = None  # --tls-key
    insecure: bool = False  # --insecure: a foreign host without TLS, on purpose
    allowed_hosts: tuple[str, ...] = ()  # --allowed-host, repeated: further names the server answers to
    production: tuple[str, ...] = ()  # --production, repeated: projects in which `penstock inject` breaks nothing
    prices: str | None = None  # --prices: the price file (YAML); default: the shipped one
    gpu_idle_after: float = 1800.0  # --gpu-idle-after: GPUs that a job holds and that do nothing so long are told of
    health_policy: str | None = None  # --health-policy: the site's health policy (YAML), over the shipped one
    gateway_host: str = "127.0.0.1"  # --gateway-host: where callers of inference services reach them
    otlp: tuple[str, int] | None = None  # --otlp: the OpenTelemetry collector that spans of requests are sent to
    gateway_port: int = 7071  # --gateway-port
    log_first_bytes: int = 4 << 20  # kept of each rank's log from its beginning
    log_newest_bytes: int = 16 << 20  # kept of each rank's log at its end
    snapshot_max_bytes: int = 256 << 20  # the largest work folder that is carried with a job
    color: bool = True  # NO_COLOR unset
    width: int | None = None  # COLUMNS

    def effective_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir}/penstock.db"
