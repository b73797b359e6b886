#!/bin/sh
# Makes .vm ready: QEMU, busybox, and the kernel of Debian's package, unpacked there and installed nowhere.
# As root it installs what is missing; as anyone else it names it, and the tests that need it are skipped by name.
set -eu
cd "$(dirname "$0")/.."
PATH="$PATH:/usr/sbin:/sbin"
. scripts/packages.sh

needed_packages() {
    missing_packages <<END
qemu-system-x86_64   qemu-system-x86
busybox              busybox-static
mkfs.ext4            e2fsprogs
dmsetup              dmsetup
END
}

take_kernel() {
    # The package linux-image-amd64 is empty and depends on the newest kernel.
    package=$(apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p' | head -n 1)
    [ -n "$package" ] || return
    say "taking the kernel out of $package"
    (cd "$place" && apt-get download -qq -o APT::Sandbox::User="" "$package") || return
    dpkg-deb --fsys-tarfile "$place"/*.deb | tar -x -C "$place" --wildcards '*/boot/vmlinuz-*' \
        '*/kernel/arch/*' '*/kernel/block/*' '*/kernel/crypto/*' '*/kernel/fs/*' '*/kernel/lib/*' '*/kernel/net/9p/*' '*/kernel/drivers/block/*' \
        '*/kernel/drivers/char/*' '*/kernel/drivers/md/*' '*/kernel/drivers/nvme/*' '*/kernel/drivers/virtio/*'
    rm -rf .vm/kernel
    mkdir -p .vm/kernel/modules
    find "$place" -path '*/modules/*' -name '*.ko*' -exec cp {} .vm/kernel/modules/ \;
    cp "$place"/boot/vmlinuz-* .vm/kernel/vmlinuz # the last, since who finds it finds all
}

[ "$(uname -m)" = x86_64 ] || { say "the tests in a virtual machine are for x86_64 hosts only"; exit 0; }

missing=$(needed_packages)
# Left unquoted to become one word a package.
[ -z "$missing" ] || install_packages $missing || say "going on: the tests in a virtual machine will be skipped"

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
[ -e .vm/kernel/vmlinuz ] || take_kernel || { is_root && apt-get update -qq && take_kernel; } ||
    say "missing: the package linux-image-amd64, Debian's kernel: the tests in a virtual machine will be skipped"

[ ! -e .vm/kernel/vmlinuz ] || [ -n "$(needed_packages)" ] || touch .vm/ready
