#!/usr/bin/env bash
# Make .venv and install what constraints.txt pins. Quick when nothing changed (a stamp inside the environment).
#
# A server started by root runs each job as an unprivileged Unix user, who must be able to execute this environment's
# interpreter and to read its packages. So, for root:
#   - the interpreter is one that others reach (not, say, a pyenv under /root, mode 0700);
#   - where the clone itself lies in a folder that is closed to others, the environment is made under
#     /var/lib/penstock/venvs, .venv is a link to it, and Penstock is copied into it instead of linked to src/.
# PYTHON=/path/to/python chooses the interpreter, PENSTOCK_VENV=/path the environment's place.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."
readonly repo=$PWD

say() { printf '%s\n' "$*" >&2; }
die() { say "make install: $*"; exit 1; }

is_root=false
[ "$(id -u)" = 0 ] && is_root=true

# as_stranger CMD...: run it as a user who owns nothing here. Where root may not change user, nobody else counts.
can_drop=false
if $is_root && setpriv --reuid 65534 --regid 65534 --clear-groups true 2>/dev/null; then can_drop=true; fi
as_stranger() { if $can_drop; then (cd / && setpriv --reuid 65534 --regid 65534 --clear-groups "$@"); else "$@"; fi; }

# ------------------------------------------------------------------------------------------------ where it is to lie
editable=true
venv=${PENSTOCK_VENV:-$repo/.venv}
if $is_root && ! as_stranger test -r "$repo/src/penstock/__init__.py"; then
  editable=false
  [ -n "${PENSTOCK_VENV:-}" ] || venv=/var/lib/penstock/venvs/$(basename "$repo")-$(printf '%s' "$repo" | sha256sum | cut -c1-10)
fi

inputs=(pyproject.toml constraints.txt tools/install.sh)
digest() {
  {
    cat "${inputs[@]}"
    printf '%s\n' "$repo" "$venv" "$editable" "${PYTHON:-}"
    $editable || find src -type f ! -name '*.pyc' -print0 | sort -z | xargs -0 cat
  } | sha256sum | cut -d' ' -f1
}
want=$(digest)
if [ -e .venv/.stamp ] && [ "$(cat .venv/.stamp)" = "$want" ] && [ -x .venv/bin/python ]; then exit 0; fi

mkdir -p build
exec 9>build/.install.lock
flock 9 # a second make waits, and then finds the stamp
if [ -e .venv/.stamp ] && [ "$(cat .venv/.stamp)" = "$want" ] && [ -x .venv/bin/python ]; then exit 0; fi

# ------------------------------------------------------------------------------------------------- which interpreter
interpreter_of() { "$1" -c 'import os, sys; sys.exit(1) if sys.version_info < (3, 11) else print(os.path.realpath(sys.executable))' 2>/dev/null; }
has_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

candidates() {
  if [ -n "${PYTHON:-}" ]; then printf '%s\n' "$PYTHON"; return; fi
  local version name dirs=("")
  $is_root && dirs=(/usr/bin/ /usr/local/bin/ "")
  for name in "${dirs[@]}"; do
    for version in 3.11 3.12 3.13 3.14 3; do printf '%spython%s\n' "$name" "$version"; done
  done
}

bare="" # an interpreter that would do but for Debian's separate venv package
choose() {
  local candidate real
  bare=""
  for candidate in $(candidates); do
    real=$(interpreter_of "$candidate") || continue
    as_stranger "$real" -I -c pass 2>/dev/null || { closed=$real; continue; }
    if has_venv "$real"; then python=$real; return 0; fi
    bare=${bare:-$real}
  done
  return 1
}

apt_install() {
  $is_root && command -v apt-get >/dev/null || return 1
  say "make install: apt-get install $*"
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" </dev/null >&2 ||
    { apt-get update -q </dev/null >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" </dev/null >&2; }
}

python="" closed=""
if ! choose; then
  if [ -n "$bare" ]; then
    package="python$("$bare" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
    apt_install "$package" || die "$bare lacks venv. Run: apt-get install $package"
  else
    apt_install python3 python3-venv || true
  fi
  choose || true
fi
if [ -z "$python" ] && [ -n "$closed" ] && has_venv "$closed"; then
  say "make install: $closed lies in a folder that is closed to other users: a server that root starts cannot run"
  say "              jobs with it. Install a system Python (apt-get install python3 python3-venv) or set PYTHON=."
  python=$closed
fi
[ -n "$python" ] || die "no Python >= 3.11 with venv found. Run: apt-get install python3 python3-venv (or set PYTHON=/path)"

# --------------------------------------------------------------------------------------------------------- make it
if [ "$venv" != "$repo/.venv" ]; then
  mkdir -p "$(dirname "$venv")"
  as_stranger test -x "$(dirname "$venv")" || die "$(dirname "$venv") is closed to other users too: set PENSTOCK_VENV to a folder that they reach"
  if [ -e .venv ] && [ ! -L .venv ]; then rm -rf .venv; fi
  ln -sfn "$venv" .venv
  say "make install: this clone is closed to other users, so the environment is made in $venv (.venv links there)"
elif [ -L .venv ]; then
  rm .venv
fi

# An environment of another interpreter, or one that was moved here (its scripts name the old place), is made anew.
base=$("$venv/bin/python" -c 'import os, sys; print(os.path.realpath(sys.executable))' 2>/dev/null || true)
if [ "$base" != "$python" ] || ! grep -qxF "command = $python -m venv $venv" "$venv/pyvenv.cfg"; then
  say "make install: a new environment in $venv ($("$python" --version), $python)"
  rm -rf "$venv"
  "$python" -m venv "$venv"
fi
rm -f "$venv/.stamp"

quiet=(-qq --progress-bar off) # errors alone
[ -t 2 ] && quiet=()
say "make install: installing what constraints.txt pins (with torch: minutes the first time) ..."
began=$SECONDS
pip=("$venv/bin/python" -m pip --disable-pip-version-check --no-input)
"${pip[@]}" install "${quiet[@]}" "$(grep -E '^pip==' constraints.txt)" </dev/null >&2
extras="postgres,nvml,checkpoint,data,s3,export,serving,demo,dev"
pinned=("${quiet[@]}" -c constraints.txt --build-constraint constraints.txt)
if $editable; then
  "${pip[@]}" install "${pinned[@]}" -e ".[$extras]" </dev/null >&2
  # pip compiles what it copies, but not an editable tree; without bytecode each `penstock` costs 60 ms more of CPU,
  # for ever where PYTHONDONTWRITEBYTECODE is set or the tree is read-only to who runs it.
  "$venv/bin/python" -m compileall -q src >&2
else
  "${pip[@]}" install "${pinned[@]}" ".[$extras]" </dev/null >&2
  "${pip[@]}" install "${pinned[@]}" --force-reinstall --no-deps . </dev/null >&2 # the version may be the same, the code is not
fi
if $can_drop; then
  as_stranger "$venv/bin/python" -I -c 'import penstock' 2>/dev/null ||
    die "another user cannot import penstock with $venv/bin/python, so jobs could not run; set PENSTOCK_VENV to a folder that they reach"
fi
printf '%s\n' "$want" >"$venv/.stamp"
say "make install: done in $((SECONDS - began)) s"
