# What a Slurm job of Penstock's is: POSIX sh and coreutils. Functions here, the job's own values below (script.py).
# With no word it is the batch script, on the first node. With "node HOST PORT" it is one node's share of a gang, read from
# its input by `sh -s`; lines that come after it there are orders ("term", "kill"), and what it says is heard by the first.
# Names begin with p_ and are never exported; no variable of the job's own is set but in the process that becomes a rank.

p_nl='
'

# -- time: one `date`, and then the kernel's clock, since a process a question is much for a job that lasts a moment. A single
# process on a shared file system does without either.

p_ticks() { IFS=' ' read -r p_up p_idle </proc/uptime; p_up=${p_up%.*}${p_up#*.}; }

p_clock() {
    p_at=$(LC_ALL=C date +%s.%N)
    p_ticks
    p_at=${p_at%N}00
    p_fraction=${p_at#*.}
    p_fraction=1${p_fraction%"${p_fraction#??}"}
    p_offset=$((${p_at%.*} * 100 + p_fraction - 100 - p_up))
}

p_now() {
    if [ -z "$p_offset" ]; then p_at=-; return; fi # what is written says when: the time of the file
    p_ticks
    p_up=$((p_offset + p_up))
    p_fraction=$((p_up % 100))
    case $p_fraction in ?) p_fraction=0$p_fraction ;; esac
    p_at=$((p_up / 100)).$p_fraction
}

# -- the end, and its reason

p_end() { # code, signal, reason, message: what is known of the end, in one line
    p_now
    p_text=$4
    while :; do
        case $p_text in *"$p_nl"*) p_text="${p_text%%"$p_nl"*} ${p_text#*"$p_nl"}" ;; *) break ;; esac
    done
    printf '%s %s %s %s %s\n' "$p_at" "$1" "$2" "$3" "$p_text" >"$p_run/ended"
}

p_split() { # a shell's status as p_code and p_signal
    p_code=$1 p_signal=0
    if [ "$1" -gt 128 ] && [ "$1" -le 192 ]; then p_code=- p_signal=$(($1 - 128)); fi
}

p_wait() { # for a child, whatever signals come meanwhile; its status in p_status
    while :; do
        wait "$1" 2>/dev/null
        p_status=$?
        kill -0 "$1" 2>/dev/null || break
    done
    # A wait that a signal has cut short does not tell the child's status; if the child is gone since, the shell still knows it.
    if [ "$p_status" -gt 128 ]; then
        wait "$1" 2>/dev/null
        p_again=$?
        [ "$p_again" = 127 ] || p_status=$p_again
    fi
}

p_after() { # seconds, and what is to be done then, unless p_forget comes first: also before it has set its trap for that
    trap - HUP
    (
        p_last=${!:-}
        trap '' TERM INT USR1 USR2
        trap '[ "${!:-}" = "$p_last" ] || kill -KILL "$!"; exit 0' HUP
        sleep "$1" &
        wait "$!"
        eval "$2"
    ) 2>/dev/null &
    p_timers="$p_timers $!"
    [ -z "$p_deaf" ] || trap '' HUP
}

p_forget() { # timers, and their sleeps: Slurm's step would last until it had ended what is left of it
    [ -z "$p_timers" ] || kill -HUP $p_timers 2>/dev/null
    p_timers=
}

p_near() { # whether Slurm's own limit is not near yet, of which Slurm tells up to a minute early; then it is looked at again
    [ -z "$p_limit" ] || return 1
    p_said=$(scontrol -o show job "$p_key" 2>/dev/null) || return 1
    p_begun=${p_said#*" StartTime="} p_over=${p_said#*" EndTime="}
    p_begun=$(date -d "${p_begun%% *}" +%s 2>/dev/null) && p_over=$(date -d "${p_over%% *}" +%s 2>/dev/null) || return 1
    p_ahead=$p_reserve p_quarter=$(((p_over - p_begun) / 4))
    [ "$p_ahead" -le "$p_quarter" ] || p_ahead=$p_quarter # of a limit that is hardly longer than the grace
    p_nap=$((p_over - p_ahead - $(date +%s)))
    [ "$p_nap" -gt 0 ] || return 1
    p_after "$p_nap" 'kill -USR2 $$'
}

p_kill() { kill -"$1" -"$2" 2>/dev/null || kill -"$1" "$2" 2>/dev/null; } # a rank's session, or what will become it

# -- the way into a rank

p_refused() { # reason, message: from the process that was to become a rank
    if [ -n "$p_gang" ]; then
        printf 'refused %s %s\n' "$1" "$2" >&5
    else
        printf '%s %s\n' "$1" "$2" >"$p_run/refused"
    fi
    case $1 in NotExecutable) exit 126 ;; *) exit 127 ;; esac
}

p_check_script() { # a first line of another system's. A shell reads a file byte for byte: not of what is no file of the user's
    case $2 in */*) ;; *) return 0 ;; esac
    IFS= read -r p_line <"$1" 2>/dev/null || return 0
    case $p_line in '#!'*) ;; *) return 0 ;; esac
    case $p_line in
    *"$(printf '\r')")
        p_refused NotExecutable "the first line of $1 ends in a carriage return (Windows line ends): mend it with sed -i 's/\\r\$//' $1" ;;
    esac
}

p_find() { # the program as exec would find it, with the job's own PATH
    case $1 in
    */*) p_places=$1 ;;
    *)
        p_places= p_rest=${PATH:-/usr/bin:/bin}:
        while [ -n "$p_rest" ]; do
            p_one=${p_rest%%:*} p_rest=${p_rest#*:}
            [ -f "${p_one:-.}/$1" ] || continue
            p_places=${p_one:-.}/$1
            [ -x "$p_places" ] && break
        done ;;
    esac
    if [ -z "$p_places" ]; then
        p_refused CommandNotFound "'$1' was not found on PATH ($PATH): check the spelling and the environment"
    fi
    [ -f "$p_places" ] || p_refused CommandNotFound "'$1' was not found: check the spelling and the environment"
    [ -x "$p_places" ] || p_refused NotExecutable "this user may not execute $p_places: chmod +x it, or name its interpreter"
    p_check_script "$p_places" "$1"
}

p_go() { # to the working folder
    if [ -n "$p_needs" ] && [ ! -x "$p_needs" ]; then
        [ -e "$p_needs" ] && p_refused EnvironmentMissing "this user cannot use $p_needs: put it where that user may read and run it"
        p_refused EnvironmentMissing "$p_needs does not exist: create the environment, or name another one"
    fi
    cd "$p_cwd" 2>/dev/null && return
    [ -e "$p_cwd" ] || p_refused WorkdirMissing "the folder $p_cwd does not exist on this node: create it, or send a snapshot"
    [ -d "$p_cwd" ] || p_refused WorkdirMissing "$p_cwd is not a folder"
    p_refused WorkdirMissing "this user cannot enter $p_cwd: choose a folder that user may read, or send a snapshot"
}

p_home() { # a folder that is there and writable, since many programs write into it at once
    [ -w "${HOME:-/nonexistent}" ] && [ -x "$HOME" ] && return
    HOME=$p_dir/home
    [ -d "$HOME" ] || mkdir -p "$HOME"
    export HOME
}

p_folders() { # of the job and the attempt, in one command, unless the server has made an array's
    if [ ! -d "$p_run/ranks" ]; then
        p_make_folders || return 1
    fi
    [ -O "$p_run" ] && [ -O "$p_dir" ]
}

p_make_folders() {
    set -- "$p_dir/checkpoints" "$p_run/logs" "$p_run/progress"
    if ! [ -w "${HOME:-/nonexistent}" ] || ! [ -x "$HOME" ]; then set -- "$@" "$p_dir/home"; fi
    if [ -z "$p_snapshot" ] && [ "$p_cwd" = "$p_run/work" ]; then set -- "$@" "$p_cwd"; fi
    LC_ALL=C mkdir -p "$@" "$p_run/ranks" # by which it is known that the others are there
}

p_conda_folder() { # of an environment's name, looked for where `conda env list` looks
    case $1 in */*) p_conda=$1; return ;; esac
    if [ -r "$HOME/.conda/environments.txt" ]; then
        while IFS= read -r p_line; do
            case $p_line in */"$1") if [ -d "$p_line" ]; then p_conda=$p_line; return; fi ;; esac
        done <"$HOME/.conda/environments.txt"
    fi
    p_one=$(command -v conda) && p_one=$(readlink -f "$p_one") && p_one=${p_one%/*/*}
    for p_one in "$HOME/miniforge3" "$HOME/mambaforge" "$HOME/miniconda3" "$HOME/anaconda3" "$HOME/.conda" "$p_one"; do
        if [ "$1" = base ] && [ -d "$p_one/conda-meta" ]; then p_conda=$p_one; return; fi
        if [ -d "$p_one/envs/$1" ]; then p_conda=$p_one/envs/$1; return; fi
    done
    p_refused EnvironmentMissing "there is no conda environment '$1' on this node; \`conda env list\` shows those there are"
}

p_become() { # in a process of its own: the rank, or the launcher, number $1 of this node
    trap - HUP INT TERM USR1 USR2
    p_home
    p_local=$1 p_rank=$((p_node_rank * p_procs + $1)) p_name=$p_rank p_path=$PATH p_devices=${CUDA_VISIBLE_DEVICES:-}
    if [ -n "$p_shimmed" ]; then
        p_name=launcher
        [ "$p_node_rank" = 0 ] || p_name=launcher-$p_node_rank
    fi
    umask 022
    p_prepare_environment
    p_go
    p_command
}

p_exec() { # the process's words
    p_find "$1"
    if [ -z "$p_shimmed" ]; then
        exec 3>>"$p_run/progress/$p_rank"
        export PENSTOCK_REPORT_FD=3
    fi
    # a session of its own: what is sent to us and to Slurm's step reaches it through us, once
    if [ -x /usr/bin/setsid ]; then set -- /usr/bin/setsid "$@"; elif [ -x /bin/setsid ]; then set -- /bin/setsid "$@"; fi
    p_export
    exec "$@" </dev/null >>"$p_run/logs/$p_name.out" 2>&1 5>&- 6>&-
}

p_port() { # one that nothing listens on here, from the job's own number onwards
    p_port=$((20000 + SLURM_JOB_ID * 13 % 12000))
    while :; do
        p_hex=:$(printf %04X "$p_port")
        p_taken=
        for p_one in /proc/net/tcp /proc/net/tcp6; do
            [ -r "$p_one" ] || continue
            while IFS=' ' read -r p_line p_local p_rest; do
                case $p_local in *"$p_hex") p_taken=1 ;; esac
            done <"$p_one"
        done
        [ -n "$p_taken" ] || return 0
        p_port=$((20000 + (p_port - 19999) % 12000))
    done
}

# -- a single process: the batch script watches it itself

p_ask() { # reason: end it, with grace; asked again, it is told no second time
    p_reason=${p_reason:-$1}
    if [ -z "$p_pid" ] || [ -n "$p_asked" ]; then return; fi
    p_asked=1
    # before it has its session it may not have heard
    kill -TERM -"$p_pid" 2>/dev/null || { kill -TERM "$p_pid" 2>/dev/null; p_after 1 'p_kill TERM "$p_pid"'; }
    p_after "$p_grace" 'kill -USR1 $$'
}

p_single() {
    p_pid= p_asked= p_killed=
    trap 'p_ask Stopped' TERM
    trap 'p_near || p_ask TimeLimit' USR2
    trap 'p_killed=1; [ -z "$p_pid" ] || p_kill KILL "$p_pid"' USR1
    if [ -z "$p_reason" ]; then
        ( p_become 0 ) &
        p_pid=$!
        [ -z "$p_reason" ] || p_ask Stopped
        [ -z "$p_killed" ] || p_kill KILL "$p_pid"
        [ -z "$p_limit" ] || p_after "$p_limit" 'kill -USR2 $$'
        [ -z "$p_warned" ] || kill -USR2 $$
        p_wait "$p_pid"
        p_forget
        p_split "$p_status"
    else # told to end before it began
        p_end - 15 "$p_reason" ""
        return 143
    fi
    p_now
    if [ -f "$p_run/refused" ]; then
        IFS=' ' read -r p_reason p_text <"$p_run/refused"
        p_end "$p_status" 0 "$p_reason" "$p_text"
        return "$p_status"
    fi
    echo "$SLURMD_NODENAME $p_code $p_signal $p_at 0" >>"$p_run/ranks/0"
    if [ -z "$p_reason" ]; then
        if [ "$p_status" = 0 ]; then p_reason=Completed; else p_reason=Failed; fi
    fi
    p_end "$p_code" "$p_signal" "$p_reason" ""
    return "$p_status"
}

# -- several: each has a watcher, and one reads what all of them say

p_watch() { # number $1 of this node, in a process of its own
    p_pid= p_asked= p_told=
    trap 'p_asked=1; p_tell' TERM INT
    trap '[ -z "$p_pid" ] || p_kill KILL "$p_pid"' USR1
    trap : USR2 HUP
    ( p_become "$1" ) &
    p_pid=$!
    [ -z "$p_asked" ] || p_tell
    p_wait "$p_pid"
    p_split "$p_status"
    p_now
    p_rank=$((p_node_rank * p_procs + $1))
    [ -n "$p_shimmed" ] || echo "$SLURMD_NODENAME $p_code $p_signal $p_at 0" >>"$p_run/ranks/$p_rank"
    echo "over $p_code $p_signal $p_status" >&5
    exit "$p_status"
}

p_tell() { # a watcher's rank to end, once; before it has its session it may not have heard
    if [ -z "$p_pid" ] || [ -n "$p_told" ]; then return; fi
    if kill -TERM -"$p_pid" 2>/dev/null; then p_told=1; else kill -TERM "$p_pid" 2>/dev/null; fi
}

p_start_watchers() { # of this node; their ids in p_watchers
    p_watchers= p_count=0
    while [ "$p_count" -lt "$p_mains" ]; do
        p_watch "$p_count" &
        p_watchers="$p_watchers $!"
        p_count=$((p_count + 1))
    done
}

p_order() { # term or kill: to everything of the gang
    if [ "$p_nodes" -gt 1 ]; then
        if [ "$p_ready" -ge "$p_nodes" ]; then echo "$1" >&6; else p_late="$p_late $1"; fi
    elif [ "$1" = term ]; then
        kill -TERM $p_watchers 2>/dev/null
    else
        kill -USR1 $p_watchers 2>/dev/null
    fi
}

p_stop() { # reason, message
    if [ -z "$p_reason" ]; then p_reason=$1 p_message=$2; fi
    [ -z "$p_stopping" ] || return 0
    p_stopping=1
    p_order term
    p_after 1 'echo again >&5' # a watcher that has just been started may not have heard
    p_after "$p_grace" 'echo kill >&5'
}

p_step() { # the gang's nodes, by srun
    cat "$0" >&6 & # and then the orders, once all of them are ready: they have read all of it by then
    srun --nodes="$p_nodes" --ntasks="$p_nodes" --ntasks-per-node=1 --kill-on-bad-exit=0 --quiet --mpi=none \
        ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
        /bin/sh -s node "$p_host" "$p_port" "$p_resume" <&6 >&5
    echo "step $?" >&5
}

p_supervise() {
    trap '' TERM USR1 USR2 INT HUP
    p_deaf=1 p_left=$p_mains p_ready=0 p_late= p_stopping= p_message= p_failed= p_ok=0
    if [ "$p_nodes" -gt 1 ]; then
        p_left=$((p_mains * p_nodes + 1))
        ( trap - TERM USR1 USR2 INT HUP; p_step ) &
    else
        p_start_watchers
    fi
    [ -z "$p_limit" ] || p_after "$p_limit" 'echo limit >&5'
    while [ "$p_left" -gt 0 ] && IFS=' ' read -r p_event p_one p_two p_three <&5; do
        case $p_event in
        ready)
            p_ready=$((p_ready + 1))
            if [ "$p_ready" = "$p_nodes" ]; then for p_one in $p_late; do echo "$p_one" >&6; done; fi ;;
        over)
            p_left=$((p_left - 1))
            if [ "$p_three" != 0 ]; then
                p_failed=${p_failed:-"$p_one $p_two $p_three"}
                [ "$p_left" = $((p_nodes > 1)) ] || p_stop Failed ""
            fi ;;
        refused)
            [ -n "$p_failed" ] || p_failed="127 0 127"
            p_stop "$p_one" "$p_two${p_three:+ $p_three}" ;;
        term) p_stop Stopped "" ;;
        limit) p_near || p_stop TimeLimit "" ;;
        again) p_order term ;;
        kill) p_order kill ;;
        step) # srun is over; where not all were heard of, it is the one that failed
            if [ "$p_left" -gt 1 ]; then p_failed=${p_failed:-"$p_one 0 $p_one"}; fi
            if [ "$p_ready" = 0 ] && [ -z "$p_reason" ]; then
                p_reason=LaunchFailed p_message="srun could not start the job's processes: logs/batch.out says why"
            fi
            p_left=0 ;;
        esac
    done
    p_forget
    [ -n "$p_failed" ] || p_failed="0 0 0"
    IFS=' ' read -r p_code p_signal p_status <<EOF
$p_failed
EOF
    if [ -z "$p_reason" ]; then
        if [ "$p_status" = 0 ]; then p_reason=Completed; else p_reason=Failed; fi
    fi
    p_end "$p_code" "$p_signal" "$p_reason" "$p_message"
    exit "$p_status"
}

p_gang() {
    p_gang=1
    p_pipes=$(mktemp -d) && mkfifo "$p_pipes/events" "$p_pipes/orders" && exec 5<>"$p_pipes/events" 6<>"$p_pipes/orders" || {
        p_end 127 0 LaunchFailed "cannot make a pipe in ${TMPDIR:-/tmp} on $SLURMD_NODENAME"
        return 127
    }
    rm -rf "$p_pipes"
    trap 'echo term >&5' TERM
    trap 'echo kill >&5' USR1
    trap 'echo limit >&5' USR2
    [ -z "$p_reason" ] || echo term >&5
    [ -z "$p_warned" ] || echo limit >&5
    p_supervise &
    p_wait $!
    return "$p_status"
}

p_node() { # host, port, whether it resumes: one node of a gang
    p_host=$1 p_port=$2 p_resume=$3 p_gang=1 p_node_rank=$SLURM_NODEID
    p_clock
    if [ -z "$p_shared" ] && [ "$p_node_rank" != 0 ]; then
        p_apart || { echo "refused LaunchFailed the job's files could not be put into $p_run on $SLURMD_NODENAME"; exit 127; }
    fi
    exec 5>&1 7<&0
    trap ':' USR2 HUP
    trap 'kill -TERM $p_watchers 2>/dev/null' TERM INT
    trap 'kill -USR1 $p_watchers 2>/dev/null' USR1
    p_start_watchers </dev/null
    echo ready >&5
    (
        trap '' TERM USR1 USR2 INT HUP
        while IFS= read -r p_line; do
            case $p_line in
            term) kill -TERM $p_watchers 2>/dev/null ;;
            kill) kill -USR1 $p_watchers 2>/dev/null ;;
            esac
        done
    ) <&7 >/dev/null &
    p_reader=$!
    for p_one in $p_watchers; do p_wait "$p_one"; done
    kill -KILL "$p_reader" 2>/dev/null
    exit 0
}

# -- the batch script

p_size() { # of one that takes fewer nodes: what it was given
    p_nodes=${SLURM_JOB_NUM_NODES:-$SLURM_NNODES}
    p_world=$((p_nodes * p_procs))
}

p_hostfile() { # the attempt's nodes in the form that DeepSpeed and Open MPI read
    if [ "$p_nodes" = 1 ]; then
        echo "$p_prefix$SLURMD_NODENAME slots=$p_procs"
    else
        scontrol show hostnames "$SLURM_JOB_NODELIST" | while IFS= read -r p_one; do echo "$p_prefix$p_one slots=$p_procs"; done
    fi >"$p_run/hostfile"
}

p_claim() { # the right to run this attempt, taken once; a requeue of the same Slurm job has it already
    p_key=$SLURM_JOB_ID
    [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || p_key=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    set -C
    { echo "$p_key ${SLURM_RESTART_COUNT:-0}" >"$p_run/claim"; } 2>/dev/null && { set +C; return 0; }
    set +C
    IFS=' ' read -r p_one p_two <"$p_run/claim" || :
    [ "$p_one" = "$p_key" ] && [ "${SLURM_RESTART_COUNT:-0}" -gt "${p_two:-0}" ] || return 1
    rm -rf "$p_run/ended" "$p_run/started" "$p_run/refused" "$p_run/ranks" && mkdir "$p_run/ranks" &&
        echo "$p_key $SLURM_RESTART_COUNT" >"$p_run/claim" && p_resume=1
}

p_address() { # of the first node, as the others reach it
    p_host=$(scontrol -o show node "$SLURMD_NODENAME" 2>/dev/null)
    case $p_host in
    *" NodeAddr="*) p_host=${p_host#*" NodeAddr="} p_host=${p_host%% *} ;;
    *) p_host=$(hostname) ;;
    esac
}

p_unpack() { # the snapshot: beside work first, so that a half unpacked one is never run
    [ -d "$p_run/work" ] && return
    mkdir -p "$p_run/work.part" && p_snapshot_bytes | tar -xzf - --no-same-owner -C "$p_run/work.part" &&
        mv "$p_run/work.part" "$p_run/work"
}

p_snapshot_bytes() { cat "$p_snapshot"; }

p_apart() { # a node's own folders, where it shares none with the first
    p_folders || return 1
    rm -f "$p_run/ranks"/*
    if [ -n "$p_snapshot" ]; then p_unpack || return 1; fi
    p_hostfile
} </dev/null >/dev/null 2>&1

p_deliver() { # what lies on the nodes' own disks is fetched by the server, which is told so and waited for, 60 s at the most
    rm -f "$p_run/fetched"
    scontrol update JobId="$SLURM_JOB_ID" Comment="penstock: over" >/dev/null 2>&1 || return 0
    p_count=0
    while [ ! -e "$p_run/fetched" ] && [ "$p_count" -lt 300 ]; do
        sleep 0.2
        p_count=$((p_count + 1))
    done
}

p_main() {
    umask 077
    cd /
    p_node_rank=0 p_gang= p_deaf= p_reason= p_resume= p_timers= p_warned= p_offset=
    p_values
    [ -z "$p_least" ] || p_size
    if [ "${1:-}" = node ]; then shift; p_node "$@"; fi
    if [ -O / ]; then echo "jobs are never run as root" >&2; return 98; fi
    trap 'p_reason=Stopped' TERM
    trap 'p_warned=1' USR2
    trap : USR1
    p_folders || return 97
    p_claim || { [ -e "$p_run/claim" ] && return 96; return 97; }
    exec </dev/null >>"$p_run/logs/batch.out" 2>&1
    if [ -z "$p_alone" ] || [ -z "$p_shared" ]; then
        p_clock
        p_now
        echo "$p_at ${SLURM_RESTART_COUNT:-0}" >"$p_run/started"
    fi
    [ -z "$p_attempt_resumes" ] || p_resume=1
    if [ -z "$p_resume" ]; then
        for p_one in "$p_dir/checkpoints"/*; do [ ! -e "$p_one" ] || p_resume=1; done
    fi
    if [ -n "$p_snapshot" ]; then
        p_unpack || {
            p_end 127 0 LaunchFailed "the job's snapshot could not be unpacked on $SLURMD_NODENAME: see batch.out"
            [ -n "$p_shared" ] || p_deliver
            return 127
        }
    fi
    p_host=127.0.0.1 p_port=20000
    [ "$p_nodes" = 1 ] || p_address
    if [ "$p_world" -gt 1 ] || [ -n "$p_shimmed$p_least" ]; then
        p_port
        p_hostfile
    fi
    if [ -n "$p_alone" ]; then p_single; else p_gang; fi
    p_ends=$?
    p_forget
    [ -n "$p_shared" ] || p_deliver
    return "$p_ends"
}
