# Process 1 of a testbed, once the host's tree is its root. job.py puts above this file: $busybox, $output, $token,
# $writable, $private_tmp, $hostname, and the function job.

# A process 1 that ends is a kernel that panics: whatever fails before the command ends the machine without a verdict.
set -e

bb() { "$busybox" "$@"; }

bb mount -t proc proc /proc
bb mount -t sysfs sys /sys
bb mount -t devtmpfs dev /dev
bb mkdir -p /dev/pts /dev/shm
bb mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
bb mount -t tmpfs -o mode=1777 tmpfs /dev/shm
bb ln -sf /proc/self/fd /dev/fd
bb ln -sf /proc/self/fd/0 /dev/stdin
bb ln -sf /proc/self/fd/1 /dev/stdout
bb ln -sf /proc/self/fd/2 /dev/stderr
[ -z "$private_tmp" ] || bb mount -t tmpfs -o mode=1777 tmpfs /tmp

share_writable

# As udev does it; the kernel's own mode is 0600.
[ ! -e /dev/vsock ] || bb chmod 666 /dev/vsock

bb hostname "$hostname"
bb ip link set lo up

# Without this the console turns every newline into two characters.
bb stty -F "$output" -opost
status=0
job </dev/null >"$output" 2>&1 || status=$?
bb sync

# The verdict follows the command's output on the same line, so whoever reads it has read everything. That reader then ends
# the machine: powering off by ourselves could cut off what is still in the line's buffer.
echo "$token $status" >"$output"
while :; do bb sleep 3600; done
