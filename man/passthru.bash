# Completion of passthru, written by man/make.py: do not edit.
_passthru() {
    local line=${COMP_LINE:0:COMP_POINT} cur=${COMP_WORDS[COMP_CWORD]} before word last
    word=${line##* }; before=${line%"$word"}; before=${before%"${before##*[! ]}"}; before=${before##* }
    [[ $cur == '=' ]] && cur=
    last=${word##*,}
    local words= options= names= command=
    COMPREPLY=()
    if (( COMP_CWORD > 1 )); then command=${COMP_WORDS[1]}; fi
    case $command in
    list)
        options='-h --help --json'
        case $before in
        esac ;;
    status)
        options='-h --help --json'
        case $before in
        esac ;;
    set)
        options='-h --help'
        case $before in
        esac ;;
    stats)
        options='-h --help --json --prometheus --plot'
        case $before in
        --plot) words=''; names=value ;;
        esac ;;
    top)
        options='-h --help -i --interval -n --count -b --batch'
        case $before in
        -i|--interval) words=''; names=value ;;
        -n|--count) words=''; names=value ;;
        esac ;;
    check)
        options='-h --help -f --foreground -d --debug --debug-fuse --log --log-level -r --read-only --allow-other --allow-root --auto-unmount --fsname --fixed-size --transport --enable-uring --queue-depth --dialect --zero-copy --payload-buffers --pin-buffers --no-pin-buffers --pin-headers --no-pin-headers --threads --max-write --max-background --max-read --spin-us --cache --inotify --attr-timeout --entry-timeout --negative-timeout --direct-io --writeback --passthrough --no-passthrough --nopassthrough --parallel-direct-writes --local-locks -x --one-file-system --submounts --trust-modes --map-uid --map-gid --selinux --idmapped --sandbox --supervise -o --nocache -s --single --num-threads --bg-debug-fuse --nosplice --clone-fd --force-user --force-group --create-for-user --create-for-group --no-allow-other -V --version'
        case $before in
        --log) words='auto stderr journal syslog'; names=value ;;
        --log-level) words='error warning info debug'; names=value ;;
        --fsname) words=''; names=value ;;
        --transport) words='auto ring dev'; names=value ;;
        --queue-depth) words=''; names=value ;;
        --dialect) words='auto per-entry bufring bufpool'; names=value ;;
        --zero-copy) words='auto on off'; names=value ;;
        --payload-buffers) words=''; names=value ;;
        --threads) words=''; names=value ;;
        --max-write) words=''; names=value ;;
        --max-background) words=''; names=value ;;
        --max-read) words=''; names=value ;;
        --spin-us) words=''; names=value ;;
        --cache) words='never open auto coherent always'; names=value ;;
        --inotify) words='auto on off'; names=value ;;
        --attr-timeout) words=''; names=value ;;
        --entry-timeout) words=''; names=value ;;
        --negative-timeout) words=''; names=value ;;
        --parallel-direct-writes) words='auto on off'; names=value ;;
        --submounts) words='data all'; names=value ;;
        --map-uid) words=''; names=value ;;
        --map-gid) words=''; names=value ;;
        --sandbox) words='auto none caps seccomp namespace'; names=value ;;
        --num-threads) words=''; names=value ;;
        --force-user) words=''; names=value ;;
        --force-group) words=''; names=value ;;
        --create-for-user) words=''; names=value ;;
        --create-for-group) words=''; names=value ;;
        esac ;;
    help)
        options='-h --help'
        case $before in
        esac ;;
    install-helper)
        options='-h --help --prefix --remove'
        case $before in
        --prefix) words=''; names=value ;;
        esac ;;
    *)
        options='-h --help -f --foreground -d --debug --debug-fuse --log --log-level -r --read-only --allow-other --allow-root --auto-unmount --fsname --fixed-size --transport --enable-uring --queue-depth --dialect --zero-copy --payload-buffers --pin-buffers --no-pin-buffers --pin-headers --no-pin-headers --threads --max-write --max-background --max-read --spin-us --cache --inotify --attr-timeout --entry-timeout --negative-timeout --direct-io --writeback --passthrough --no-passthrough --nopassthrough --parallel-direct-writes --local-locks -x --one-file-system --submounts --trust-modes --map-uid --map-gid --selinux --idmapped --sandbox --supervise -o --nocache -s --single --num-threads --bg-debug-fuse --nosplice --clone-fd --force-user --force-group --create-for-user --create-for-group --no-allow-other -V --version'
        case $before in
        --log) words='auto stderr journal syslog'; names=value ;;
        --log-level) words='error warning info debug'; names=value ;;
        --fsname) words=''; names=value ;;
        --transport) words='auto ring dev'; names=value ;;
        --queue-depth) words=''; names=value ;;
        --dialect) words='auto per-entry bufring bufpool'; names=value ;;
        --zero-copy) words='auto on off'; names=value ;;
        --payload-buffers) words=''; names=value ;;
        --threads) words=''; names=value ;;
        --max-write) words=''; names=value ;;
        --max-background) words=''; names=value ;;
        --max-read) words=''; names=value ;;
        --spin-us) words=''; names=value ;;
        --cache) words='never open auto coherent always'; names=value ;;
        --inotify) words='auto on off'; names=value ;;
        --attr-timeout) words=''; names=value ;;
        --entry-timeout) words=''; names=value ;;
        --negative-timeout) words=''; names=value ;;
        --parallel-direct-writes) words='auto on off'; names=value ;;
        --submounts) words='data all'; names=value ;;
        --map-uid) words=''; names=value ;;
        --map-gid) words=''; names=value ;;
        --sandbox) words='auto none caps seccomp namespace'; names=value ;;
        --num-threads) words=''; names=value ;;
        --force-user) words=''; names=value ;;
        --force-group) words=''; names=value ;;
        --create-for-user) words=''; names=value ;;
        --create-for-group) words=''; names=value ;;
        esac ;;
    esac
    if [[ $before == -o ]]; then
        if [[ $last == *=* ]]; then
            case ${last%%=*}= in
            log=) words='auto stderr journal syslog' ;;
            log_level=) words='error warning info debug' ;;
            transport=) words='auto ring dev' ;;
            dialect=) words='auto per-entry bufring bufpool' ;;
            zero_copy=) words='auto on off' ;;
            cache=) words='never open auto coherent always' ;;
            inotify=) words='auto on off' ;;
            parallel_direct_writes=) words='auto on off' ;;
            submounts=) words='data all' ;;
            sandbox=) words='auto none caps seccomp namespace' ;;
            esac
            COMPREPLY=($(compgen -W "$words" -- "${last#*=}"))
        else
            words='debug debug_fuse log= log_level= ro rw allow_other noallow_other default_permissions nodefault_permissions allow_root noallow_root auto_unmount noauto_unmount fsname= subtype= nosuid suid nodev dev noexec exec noatime atime strictatime nostrictatime nodiratime diratime fixed_size nofixed_size nosymfollow context= fscontext= defcontext= rootcontext= transport= enable_uring queue_depth= dialect= zero_copy= payload_buffers= pin_buffers nopin_buffers pin_headers nopin_headers threads= max_write= max_background= max_read= spin_us= cache= inotify= attr_timeout= entry_timeout= negative_timeout= direct_io nodirect_io writeback nowriteback passthrough nopassthrough parallel_direct_writes= local_locks nolocal_locks one_file_system submounts= trust_modes notrust_modes xattr noxattr map_uid= map_gid= selinux noselinux idmapped noidmapped sandbox= supervise nosupervise max_threads= io_uring io_uring_q_depth= writeback_cache no_remote_lock clone_fd timeout= no_writeback no_xattr force-user= force-group= create-for-user= create-for-group= no-allow-other cache.attr= cache.entry= cache.negative_entry='
            COMPREPLY=($(compgen -P "${word%"$last"}" -W "$words" -- "$last"))
            [[ ${COMPREPLY[*]} == *= ]] && compopt -o nospace
        fi
        return
    fi
    if [[ $names == value ]]; then
        COMPREPLY=($(compgen -W "$words" -- "$cur"))
        [[ -n $words ]] || COMPREPLY=($(compgen -f -- "$cur"))
        return
    fi
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
        return
    fi
    case $command in
    help) COMPREPLY=($(compgen -W 'list status set stats top check help install-helper' -- "$cur")); return ;;
    status|set|stats|top) COMPREPLY=($(compgen -W "$(awk '$3 ~ /^fuse[.]?passthru$/ {print $2}' /proc/self/mounts)" -- "$cur")) ;;
    esac
    if (( COMP_CWORD == 1 )); then COMPREPLY=($(compgen -W 'list status set stats top check help install-helper' -- "$cur")); fi
    compopt -o filenames 2>/dev/null
    COMPREPLY+=($(compgen -f -- "$cur"))
}
complete -F _passthru passthru
