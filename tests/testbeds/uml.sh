# Process 1 of User Mode Linux, whose root is the host's tree, read-only. uml.py puts above this file: $busybox, $modules,
# $vsock_modules, $inside.

set -e

bb() { "$busybox" "$@"; }

bb mount -t tmpfs tmpfs /run
bb mkdir /run/upper /run/work /run/root
bb insmod "$modules/kernel/fs/overlayfs/overlay.ko"
bb mount -t overlay -o lowerdir=/,upperdir=/run/upper,workdir=/run/work overlay /run/root
bb mount -t tmpfs tmpfs /run/root/run

for module in $vsock_modules; do
    bb insmod "$modules/kernel/net/vmw_vsock/$module.ko"
done

exec "$busybox" chroot /run/root "$busybox" sh -c "$inside"
