"""``penstock agent`` as a systemd unit and as a DaemonSet. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

UNIT = """\
# /etc/systemd/system/penstock-agent.service
# The token: penstock token create --agent NODE > {token_file}; chmod 600 {token_file}
[Unit]
Description=Penstock agent: reads the node's telemetry and tells the server what is wrong
Documentation=https://penstock.example/docs/telemetry
After=network-online.target
Wants=network-online.target

[Service]
ExecStart={command}
StateDirectory=penstock-agent
Restart=always
RestartSec=5
Nice=5
MemoryMax=256M
TasksMax=64
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
# The kernel's log; files of others; and the node's own mounts, which this unit sees as read-only (/proc/1/mounts).
CapabilityBoundingSet=CAP_SYSLOG CAP_DAC_READ_SEARCH CAP_SYS_PTRACE

[Install]
WantedBy=multi-user.target
"""

DAEMONSET = """\
# kubectl create secret generic penstock-agent --from-file=DIRECTORY   (a file for each node, named as it: its token)
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: penstock-agent
  labels: {{app.kubernetes.io/name: penstock-agent}}
spec:
  selector:
    matchLabels: {{app.kubernetes.io/name: penstock-agent}}
  updateStrategy:
    rollingUpdate: {{maxUnavailable: 10%}}
  template:
    metadata:
      labels: {{app.kubernetes.io/name: penstock-agent}}
      annotations: {{prometheus.io/scrape: "true", prometheus.io/port: "7072"}}
    spec:
      hostNetwork: true
      hostPID: true
      priorityClassName: system-node-critical
      tolerations: [{{operator: Exists}}]
      containers:
        - name: agent
          image: {image}
          command: {command}
          env:
            - name: NODE_NAME
              valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}
            - {{name: NVIDIA_VISIBLE_DEVICES, value: all}}
            - {{name: NVIDIA_DRIVER_CAPABILITIES, value: utility}}
          securityContext: {{privileged: true}}  # the kernel's log, and NVML
          resources:
            requests: {{cpu: 20m, memory: 64Mi}}
            limits: {{memory: 256Mi}}
          volumeMounts:
            - {{name: node, mountPath: /host, readOnly: true, mountPropagation: HostToContainer}}
            - {{name: state, mountPath: /var/lib/penstock-agent}}
            - {{name: tokens, mountPath: /etc/penstock/tokens, readOnly: true}}
      volumes:
        - {{name: node, hostPath: {{path: /}}}}
        - {{name: state, hostPath: {{path: /var/lib/penstock-agent, type: DirectoryOrCreate}}}}
        - {{name: tokens, secret: {{secretName: penstock-agent}}}}
"""
TOKEN_FILE = "/etc/penstock/agent.token"  # noqa: S105 - a file's name
STATE_DIR = "/var/lib/penstock-agent"


def systemd(program: str, url: str, more: Sequence[str] = ()) -> str:
    words = [program, "agent", "--url", url, "--token-file", TOKEN_FILE, "--state-dir", STATE_DIR, *more]
    return UNIT.format(command=shlex.join(words).replace("%", "%%").replace("$", "$$"), token_file=TOKEN_FILE)


def daemonset(image: str, url: str, more: Sequence[str] = ()) -> str:
    words = [
        "penstock", "agent", "--url", url, "--node", "$(NODE_NAME)", "--token-file", "/etc/penstock/tokens/$(NODE_NAME)",
        "--state-dir", STATE_DIR, "--root", "/host", "--listen", "0.0.0.0:7072", *more,
    ]  # fmt: skip
    return DAEMONSET.format(image=_quoted(image), command="[" + ", ".join(map(_quoted, words)) + "]")


def _quoted(text: str) -> str:
    """As YAML has a text in double quotes."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
