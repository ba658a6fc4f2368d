#!/usr/bin/env bash
# Installs what the tests drive from outside: real NBD clients, the peers they are compared with, a file system and a
# database to put on a volume. Does nothing where all is there. Debian names; elsewhere it lists what is missing.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

# command:package. nbdfuse is in libnbd-bin up to Debian 12 and a package of its own later.
wanted=(
	nbdinfo:libnbd-bin
	nbdcopy:libnbd-bin
	nbdfuse:libnbd-bin
	qemu-io:qemu-utils
	qemu-img:qemu-utils
	qemu-nbd:qemu-utils
	qemu-storage-daemon:qemu-system-common
	fio:fio
	sqlite3:sqlite3
	nbdkit:nbdkit
	jq:jq
	mkfs.ext4:e2fsprogs
	fsck.ext4:e2fsprogs
	losetup:mount
	fusermount3:fuse3
	gcc:gcc
)

missing() {
	local entry
	for entry in "${wanted[@]}"; do
		command -v "${entry%%:*}" >/dev/null || echo "${entry#*:}"
	done | sort -u
}

packages=$(missing)
[ -n "$packages" ] || exit 0
if ! command -v apt-get >/dev/null; then
	echo "missing tools; install the equivalent of these Debian packages:" $packages >&2
	exit 1
fi
echo "installing:" $packages
sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -qq
if apt-cache show nbdfuse >/dev/null 2>&1 && ! command -v nbdfuse >/dev/null; then
	packages="$packages nbdfuse"
fi
# gcc alone has no libc headers, and the race detector's runtime is linked against them.
case " $(echo $packages) " in *" gcc "*) packages="$packages libc6-dev" ;; esac
$sudo apt-get install -y -qq --no-install-recommends $packages

packages=$(missing)
if [ -n "$packages" ]; then
	echo "still missing after the installation:" $packages >&2
	exit 1
fi
