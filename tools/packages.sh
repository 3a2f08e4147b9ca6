# shellcheck shell=bash
# Debian packages of gemmd, for tools/quickstart and tools/check; to be sourced.

# Reading the lists by `shellcheck` alone shows no use: the sourcing scripts have it.
# shellcheck disable=SC2034
packages_build=(gcc meson ninja-build pkg-config libc6-dev liburing-dev libseccomp-dev libxxhash-dev
                libjansson-dev)
# shellcheck disable=SC2034
packages_test=(g++ clang libclang-rt-14-dev libcmocka-dev libdnnl-dev gnuplot-nox valgrind systemd
               strace procps spin shellcheck scdoc python3 qemu-system-x86)

# Prints those of the given packages that are not installed.
missing_packages()
{
    local package
    for package in "$@"; do
        dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
            printf '%s\n' "$package"
    done
}

# Installs what is missing of the given packages: root by itself, others through sudo.
# Nothing is downloaded when nothing is missing.
install_missing()
{
    local missing=() run=()
    mapfile -t missing < <(missing_packages "$@")
    ((${#missing[@]})) || return 0
    if ! command -v apt-get >/dev/null; then
        echo "missing: ${missing[*]} (Debian names); install them and try again" >&2
        return 1
    fi
    if ((EUID)); then
        command -v sudo >/dev/null || {
            echo "missing: ${missing[*]}; as root: apt-get install ${missing[*]}" >&2
            return 1
        }
        run=(sudo)
    fi
    echo "installing: ${missing[*]}"
    "${run[@]}" apt-get -qq update &&
        DEBIAN_FRONTEND=noninteractive "${run[@]}" apt-get -qq install -y --no-install-recommends \
            "${missing[@]}" >/dev/null
}

# A kernel for the guest of tests/numa, where that test looks for one.  Extracted, not installed.
# Nothing is downloaded when one is there.
fetch_guest_kernel()
{
    local cache=${XDG_CACHE_HOME:-$HOME/.cache}/gemmd/kernel package folder
    compgen -G '/boot/vmlinuz-*cloud-amd64' >/dev/null && return 0
    compgen -G "$cache/boot/vmlinuz-*" >/dev/null && return 0
    package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
        grep -o 'linux-image-[0-9][^ ]*' | head -n 1)
    [[ -n $package ]] || return 1
    folder=$(mktemp -d) || return 1
    echo "fetching: $package"
    mkdir -p "$cache" &&
        (cd "$folder" && apt-get -qq download "$package") &&
        dpkg-deb --fsys-tarfile "$folder/$package"_*.deb |
        tar -x -C "$cache" --wildcards './boot/vmlinuz-*'
    local result=$?
    rm -r "$folder"
    return "$result"
}
