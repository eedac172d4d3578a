# Process 1 of a virtual machine, in its initramfs. vm.py puts above this file: $busybox (in the host's tree), $modules,
# $inside. Its root is the host's tree, which /copied has parts of, under a layer in memory.

set -e

bb() { /bin/busybox "$@"; }

bb mount -t devtmpfs dev /dev
for module in $modules; do
    bb insmod "/modules/$module.ko"
done

bb mkdir -p /lower /layer /root
bb mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 root /lower
bb mount -t tmpfs tmpfs /layer
bb mkdir /layer/upper /layer/work
bb mount -t overlay -o lowerdir=/copied:/lower,upperdir=/layer/upper,workdir=/layer/work overlay /root
bb mount -t tmpfs tmpfs /root/run

exec /bin/busybox chroot /root "$busybox" sh -c "$inside"
