#!/bin/sh
# Install the Debian packages named, if they are missing and this user may; else say the command in one line.
# It is no failure if it cannot: what needs them says so itself.
missing=
for package in "$@"; do
    dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    exec 9<"$0" && flock 9  # one at a time: apt-get does not wait for another
    echo "installing$missing"
    apt-get -qq update
    # shellcheck disable=SC2086  # a list of names
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $missing >/dev/null && exit 0
fi
echo "missing, and not installed: run  sudo apt-get install --no-install-recommends$missing" >&2
exit 0
