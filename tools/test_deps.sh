#!/usr/bin/env bash
# Debian packages of the tests and benchmarks: installs only what is missing. Without root, or with
# PENSTOCK_NO_APT=1, it says what is left out; the tests that need it are then deselected, and pytest prints how many.
# What is left out stands in build/left-out, one word a line, as the marker `needs(...)` names it.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build
PATH=$PATH:/usr/sbin:/sbin # a user's PATH may lack them

has_chromium() { command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; }
has_postgresql() { command -v initdb >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; }
has_slurmdbd() { command -v slurmdbd >/dev/null && command -v mariadbd >/dev/null && command -v mariadb-install-db >/dev/null; }
has_slurm() { command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null && command -v sbatch >/dev/null; }
has_slurmrestd() { command -v slurmrestd >/dev/null && [ -n "$(find /usr/lib -path '*/slurm*/auth_jwt.so' -print -quit 2>/dev/null)" ]; }
has_prometheus() { command -v prometheus >/dev/null && command -v promtool >/dev/null && command -v prometheus-alertmanager >/dev/null && command -v amtool >/dev/null; }
has_iptables() { command -v iptables-legacy >/dev/null && command -v tc >/dev/null && command -v nsenter >/dev/null; }
has_wrk() { command -v wrk >/dev/null; }
has_fio() { command -v fio >/dev/null; }
# The binary inside nvidia-pytriton's wheel (pip), which needs this interpreter's shared library (apt).
libpython=$(.venv/bin/python -c 'import sys; print("libpython%d.%d" % sys.version_info[:2])')
if [ ! -d build/tritonserver/site/onnxruntime ]; then
  echo "make test-deps: fetching a tritonserver by pip" >&2
  .venv/bin/python -m tests.triton_server >&2 || echo "make test-deps: no tritonserver; its tests are left out" >&2
fi
has_libpython() { .venv/bin/python -m tests.triton_server --check 2>/dev/null; }
left=()
has_sshd() { [ -x /usr/sbin/sshd ] && command -v ssh >/dev/null; }

declare -A packages=(
  [chromium]="chromium fonts-dejavu-core"
  [postgresql]="postgresql"
  [slurm]="slurm-wlm munge"
  [slurmdbd]="slurmdbd mariadb-server"
  [slurmrestd]="slurmrestd slurm-wlm-jwt-plugin"
  [sshd]="openssh-server openssh-client"
  [prometheus]="prometheus prometheus-alertmanager"
  [wrk]="wrk"
  [iptables]="iptables iproute2 util-linux"
  [fio]="fio"
  [libpython]="$libpython"
)
if [ ! -d build/tritonserver/site/onnxruntime ]; then
  left=(tritonserver) # pip could not
elif ! has_libpython && ! apt-cache show "$libpython" >/dev/null 2>&1; then
  left=(tritonserver libpython) # an interpreter that apt knows nothing of
fi
missing=() wanted=()
for need in chromium postgresql slurm slurmdbd slurmrestd sshd prometheus wrk fio iptables libpython; do
  if [[ " ${left[*]} " != *" $need "* ]] && ! "has_$need"; then
    missing+=("$need")
    read -ra names <<<"${packages[$need]}"
    wanted+=("${names[@]}")
  fi
done
command -v vllm >/dev/null || left+=(vllm) # on the PATH where somebody has installed it: gigabytes, and AVX-512 or a GPU
[ "$(id -u)" = 0 ] || missing+=(root) # what only root can do: mount a small disk, run jobs as another user
leave_out() { printf '%s\n' "$@" "${left[@]}" >build/left-out; }
if [ ${#missing[@]} = 0 ]; then leave_out; exit 0; fi

install() {
  # The packages' own servers stay down: tests start private ones on free ports.
  export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
  apt-get install -y -q --no-install-recommends "$@" </dev/null ||
    { apt-get update -q </dev/null && apt-get install -y -q --no-install-recommends "$@" </dev/null; }
}

if [ "$(id -u)" = 0 ] && [ -z "${PENSTOCK_NO_APT:-}" ] && command -v apt-get >/dev/null; then
  echo "make test-deps: apt-get install ${wanted[*]}" >&2
  install "${wanted[@]}" >&2 || { echo "make test-deps: apt-get failed; install ${wanted[*]} by hand, or set PENSTOCK_NO_APT=1" >&2; exit 1; }
  still=()
  for need in "${missing[@]}"; do "has_$need" || still+=("$need"); done
  if [ ${#still[@]} != 0 ]; then echo "make test-deps: still missing after apt-get: ${still[*]}" >&2; exit 1; fi
  leave_out
else
  leave_out "${missing[@]}"
  {
    echo "make test-deps: not root, so these stay missing: ${missing[*]}."
    echo "                The tests that need them are left out (pytest prints how many). To have them:"
    echo "                sudo apt-get install ${wanted[*]}"
  } >&2
fi
