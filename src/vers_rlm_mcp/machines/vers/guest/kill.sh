# Kill every process of a session: sh -c THIS sh SESSION
# Runs in the machine, with nothing but the shell itself: it must work where no process can be
# started any more. What is started meanwhile is found by looking again.

tries=100
while [ "$tries" -gt 0 ]; do
    tries=$((tries - 1))
    left=
    for directory in /proc/[0-9]*; do
        # A name may hold anything, newlines too; only what follows its last bracket counts.
        all=
        while IFS= read -r line || [ "$line" ]; do
            all=$all$line
        done 2>/dev/null <"$directory/stat" || continue
        set -- "$1" ${all##*) }
        # After the session: state, parent, group, session.
        if [ "$5" = "$1" ] && [ "$2" != Z ] && [ "$2" != X ]; then
            left=yes
            kill -KILL "${directory##*/}" 2>/dev/null
        fi
    done
    [ "$left" ] || exit 0
done
exit 1
