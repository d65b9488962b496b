"""Runs a program under the restrictions of a systemd unit, on a machine without systemd.

    unshare --mount --propagation private python sandbox.py UNIT WRITABLE -- PROGRAM ARGUMENT...

Reads the unit's own options and asks the kernel for the same: mounts, user, capabilities, limits, and the system calls
that `systemd-analyze syscall-filter` lists for its groups. WRITABLE stands for its state directories and is given to its
user. An option that this does not know ends it with 2, so that the unit can't gain one that nobody tries.
"""

import ctypes
import errno
import os
import resource
import subprocess
import sys

import pyseccomp as seccomp

NOBODY = 65534
PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP = 38, 24
PROT_WRITE, PROT_EXEC, SHM_EXEC = 2, 4, 0o100000
CLONE_NEW = 0x7E020080  # every CLONE_NEW* of clone(2)
SCHED_OTHER, SCHED_BATCH, SCHED_IDLE = 0, 3, 5

# What this does not do, and why the test may go without.
NOT_TRIED = {
    "Type": "how systemd watches it",
    "Group": "goes with the user",
    "ExecStartPre": "the test runs its own commands",
    "ExecStart": "the same",
    "ExecReload": "the same",
    "TimeoutStopSec": "how long systemd waits",
    "Restart": "what systemd does after a crash",
    "RestartSec": "the same",
    "LoadCredential": "the test's root key is a file",
    "StateDirectory": "WRITABLE",
    "StateDirectoryMode": "the program's own folders have theirs",
    "MemorySwapMax": "wants a control group",
    "OOMScoreAdjust": "takes nothing away",
    "ProtectProc": "wants a proc of its own",
    "ProtectClock": "no capability and no such call is left",
    "ProtectHostname": "the same",
    "ProtectKernelLogs": "the same",
    "ProtectKernelModules": "the same",
    "ProtectControlGroups": "with ProtectSystem, everything is read only",
    "PrivateTmp": "WRITABLE may lie in /tmp",
    "PrivateUsers": "no capability is left",
    "PrivateIPC": "the program has no System V or POSIX queues",
    "RemoveIPC": "the same",
    "DevicePolicy": "wants a control group; PrivateDevices leaves no device",
    "KeyringMode": "the program uses no kernel keyring",
    "RestrictSUIDSGID": "no capability is left",
}


def options(unit):
    """The [Service] section: option -> values, in order."""
    found, section = {}, ""
    with open(unit, encoding="utf-8") as lines:
        for line in map(str.strip, lines):
            if line.startswith("["):
                section = line
            elif section == "[Service]" and line and not line.startswith("#"):
                key, value = line.split("=", 1)
                found.setdefault(key, []).append(value)
    return found


def run(*command):
    subprocess.run(command, check=True)


def points():
    """Where something is mounted."""
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        return [line.split()[4].encode().decode("unicode_escape") for line in table]


def mounts(unit, writable):
    run("chown", "-R", f"{NOBODY}:{NOBODY}", writable)
    if unit.pop("PrivateDevices") == ["yes"]:
        nodes = ["null", "zero", "full", "random", "urandom"]
        kept = os.path.join(writable, ".dev")
        os.mkdir(kept)
        for node in nodes:
            open(f"{kept}/{node}", "w", encoding="utf-8").close()
            run("mount", "--bind", f"/dev/{node}", f"{kept}/{node}")
        run("mount", "--rbind", kept, "/dev")
    if unit.pop("ProtectSystem") == ["strict"]:
        run("mount", "--bind", writable, writable)
        api = ("/dev", "/proc", "/sys")
        for point in sorted(set(points()), key=len):
            if point != writable and not point.startswith(api) and not point.startswith(f"{writable}/"):
                try:
                    run("mount", "-o", "remount,bind,ro", point)
                except subprocess.CalledProcessError:
                    # A directory of a neighbour's, which takes it away with what is mounted there.
                    if point in points():
                        raise
    if unit.pop("ProtectKernelTunables") == ["yes"]:
        run("mount", "--bind", "/proc/sys", "/proc/sys")
        run("mount", "-o", "remount,bind,ro", "/proc/sys")
    # Last: this interpreter may live there, and must not load another module after it.
    if unit.pop("ProtectHome") == ["yes"]:
        for home in ("/home", "/root"):
            if os.path.isdir(home) and not os.path.realpath(writable).startswith(home):
                run("mount", "-t", "tmpfs", "-o", "ro,mode=000", "tmpfs", home)


def limits(unit):
    for option, which in (
        ("LimitCORE", resource.RLIMIT_CORE),
        ("LimitMEMLOCK", resource.RLIMIT_MEMLOCK),
        ("LimitNOFILE", resource.RLIMIT_NOFILE),
    ):
        (value,) = unit.pop(option)
        most = resource.RLIM_INFINITY if value == "infinity" else int(value)
        try:
            resource.setrlimit(which, (most, most))
        except ValueError:
            pass  # above what this machine allows: then its own, lower limit stays
    (mask,) = unit.pop("UMask")
    os.umask(int(mask, 8))


def user(unit):
    unit.pop("User")
    libc = ctypes.CDLL(None, use_errno=True)
    if unit.pop("CapabilityBoundingSet") == [""] and unit.pop("AmbientCapabilities") == [""]:
        with open("/proc/sys/kernel/cap_last_cap", encoding="utf-8") as last:
            for capability in range(int(last.read()) + 1):
                if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
                    raise OSError(ctypes.get_errno(), "dropping a capability")
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    if unit.pop("NoNewPrivileges") == ["yes"]:
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def expand(group):
    """The system calls of a group; groups name other groups."""
    text = subprocess.run(["systemd-analyze", "syscall-filter", group], check=True, capture_output=True, text=True)
    calls = set()
    for line in map(str.strip, text.stdout.splitlines()[1:]):
        if line.startswith("@"):
            calls |= expand(line)
        elif line and not line.startswith("#"):
            calls.add(line)
    return calls


def allowed_calls(lines):
    calls = set()
    for line in lines:
        deny = line.startswith("~")
        for word in line.lstrip("~").split():
            named = expand(word) if word.startswith("@") else {word}
            calls = calls - named if deny else calls | named
    return calls


def system_calls(unit):
    calls = allowed_calls(unit.pop("SystemCallFilter"))
    (error,) = unit.pop("SystemCallErrorNumber")
    unit.pop("SystemCallArchitectures")  # a filter of libseccomp is for the native one
    filter_ = seccomp.SyscallFilter(seccomp.ERRNO(getattr(errno, error)))
    only = {}
    if unit.pop("MemoryDenyWriteExecute") == ["yes"]:
        for prot in (0, PROT_WRITE, PROT_EXEC):
            only.setdefault("mmap", []).append(seccomp.Arg(2, seccomp.MASKED_EQ, PROT_WRITE | PROT_EXEC, prot))
        only["mprotect"] = only["pkey_mprotect"] = [seccomp.Arg(2, seccomp.MASKED_EQ, PROT_EXEC, 0)]
        only["shmat"] = [seccomp.Arg(2, seccomp.MASKED_EQ, SHM_EXEC, 0)]
    (families,) = unit.pop("RestrictAddressFamilies")
    numbers = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10}
    only["socket"] = [seccomp.Arg(0, seccomp.EQ, numbers[family]) for family in families.split()]
    if unit.pop("RestrictNamespaces") == ["yes"]:
        only["clone"] = [seccomp.Arg(0, seccomp.MASKED_EQ, CLONE_NEW, 0)]
        only["clone3"] = only["unshare"] = only["setns"] = []
    if unit.pop("RestrictRealtime") == ["yes"]:
        policies = (SCHED_OTHER, SCHED_BATCH, SCHED_IDLE)
        only["sched_setscheduler"] = [seccomp.Arg(1, seccomp.EQ, policy) for policy in policies]
    if unit.pop("LockPersonality") == ["yes"]:
        only["personality"] = []
    for call in calls:
        try:
            for argument in only.get(call, [None]):
                filter_.add_rule(seccomp.ALLOW, call, *([argument] if argument else []))
        except (OSError, ValueError):
            pass  # a call that this architecture does not have
    # As systemd does: the C library falls back to clone, whose flags a filter can read.
    filter_.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    return filter_


def main():
    end = sys.argv.index("--")
    unit, writable = options(sys.argv[1]), os.path.realpath(sys.argv[2])
    program = sys.argv[end + 1 :]
    filter_ = system_calls(unit)
    mounts(unit, writable)
    limits(unit)
    user(unit)
    unknown = sorted(set(unit) - set(NOT_TRIED))
    if unknown:
        print(f"the unit has options that nobody tries: {unknown}", file=sys.stderr)
        sys.exit(2)
    filter_.load()
    os.execv(program[0], program)


main()
