# Start a program: sh -c THIS sh DIRECTORY PROGRAM ARGUMENT...
# Runs in the machine. The first line of the output is the number of the session that the program
# leads, or "!0" and why it cannot be started; everything after that is the program's own.

refuse() {
    printf '!0 %s\n' "$1"
    exit 0
}

runs() {
    [ -f "$1" ] && [ -x "$1" ]
}

check_program() {
    case $1 in
    */*)
        [ -e "$1" ] || refuse 'there is no such program'
        runs "$1" || refuse 'the program is not an executable file'
        return
        ;;
    esac
    IFS=:
    set -f
    for place in $PATH; do
        runs "${place:-.}/$1" && return
    done
    refuse 'there is no such program in the PATH of the machine'
}

session_of() {
    read -r line <"/proc/$1/stat"
    set -- ${line##*) }
    session=$4
}

session_of "$$"
case $1 in
/workspace) [ -d /workspace ] || mkdir -p /workspace ;;
esac
[ -e "$1" ] || refuse 'there is no such directory'
[ -d "$1" ] || refuse 'the directory is not one'
cd -- "$1" 2>/dev/null || refuse 'the directory cannot be entered'
shift
check_program "$1"

if [ "$session" = "$$" ]; then
    printf '%s\n' "$$"
    exec "$@"
fi
# An SSH server that starts no session for a command leaves that to us.
exec setsid -w sh -c 'printf "%s\n" "$$"; exec "$@"' sh "$@"
