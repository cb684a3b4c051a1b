//go:build linux

package seccomp

import (
	"slices"

	"golang.org/x/sys/unix"
)

// A use is listed with all names that it has, on both architectures and in Go, in
// glibc's older and newer versions: open and openat, poll and ppoll.

// Enforcing is for an agent that enforces, and for cleanup.
func Enforcing() *Profile { return profile(shared, commands, netfilter, forbidden) }

// Auditing is for an agent that audits: it runs no command, and copies packets.
func Auditing() *Profile { return profile(shared, packets, forbidden) }

// Container is for a container in which netverdict does anything: both of the above.
func Container() *Profile { return profile(shared, commands, netfilter, packets, forbidden) }

func profile(parts ...[]Rule) *Profile {
	return &Profile{Rules: slices.Concat(parts...), Default: Missing}
}

func allow(why string, calls ...string) Rule {
	return Rule{Why: why, Calls: calls, Action: Allow}
}

// allowIf is for arguments that are all as wanted.
func allowIf(why, call string, when ...Arg) Rule {
	return Rule{Why: why, Calls: []string{call}, When: when, Action: Allow}
}

// allowEach is for an int argument that is one of several values.
func allowEach(why, call string, index uint, values ...int) (rules []Rule) {
	for _, v := range values {
		rules = append(rules, allowIf(why, call, is(index, v)))
	}
	return rules
}

// newNamespaces are the flags of clone(2) that make one (linux/sched.h), as in Docker's profile.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
	unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP

// shared is what every agent needs.
var shared = slices.Concat(
	[]Rule{
		allow("memory", "brk", "madvise", "mmap", "mprotect", "mremap", "munmap"),
		allow("threads", "arch_prctl", "exit", "futex", "gettid", "membarrier", "rseq", "sched_getaffinity", "sched_yield",
			"set_robust_list", "set_tid_address"),
		allowIf("threads and processes, in the namespaces of their parent", "clone", masked(0, newNamespaces, 0)),
		allow("signals, and the end", "exit_group", "kill", "pause", "restart_syscall", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "tgkill"),
		allow("time, where the kernel does not tell it without a call", "clock_gettime", "clock_nanosleep", "gettimeofday", "nanosleep", "time"),
		allow("profiles of CPU time, for --pprof", "setitimer", "timer_create", "timer_delete", "timer_settime"),
		allow("who and where it is", "capget", "getcwd", "getegid", "geteuid", "getgid", "getpid", "getppid", "getuid", "sysinfo", "uname"),
		allow("randomness", "getrandom"),
		allow("what is open", "close", "close_range", "dup", "dup2", "dup3", "epoll_create1", "epoll_ctl", "epoll_pwait", "eventfd2", "fcntl", "lseek", "pipe",
			"pipe2", "poll", "ppoll", "pread64", "pselect6", "read", "select", "write", "writev"),
		allow("files: manifests, certificates, the flow log and its rotation, the paths of sockets", "access", "chmod", "chown", "faccessat", "faccessat2",
			"fchmod", "fchmodat", "fchmodat2", "fchown", "fchownat", "fstat", "fstatfs", "getdents64", "lchown", "lstat", "mkdir", "mkdirat", "newfstatat", "open",
			"openat", "readlink", "readlinkat", "rename", "renameat", "renameat2", "stat", "statfs", "statx", "unlink", "unlinkat"),
		allow("files that change", "inotify_add_watch", "inotify_init1", "inotify_rm_watch"),
		allow("sockets, once there are any", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen", "recvfrom",
			"recvmmsg", "recvmsg", "sendmsg", "sendto", "setsockopt", "shutdown"),
		allow("limits of the calling process", "getrlimit"),
		allowIf("limits of the calling process", "prlimit64", is(0, 0)),
		allowIf("to install this very list", "seccomp", is(0, unix.SECCOMP_SET_MODE_FILTER)),
		{Why: "its flags are behind a pointer; C libraries that do not find it use clone", Calls: []string{"clone3"}, Action: Missing},
	},
	allowEach("the list is for good; names of threads and of memory", "prctl", 0, unix.PR_SET_NO_NEW_PRIVS, unix.PR_SET_NAME, unix.PR_SET_VMA, unix.PR_CAPBSET_READ),
	allowEach("the API server, metrics, sockets of this host, raw sockets of iptables", "socket", 0, unix.AF_UNIX, unix.AF_INET, unix.AF_INET6),
	[]Rule{
		allowIf("links, addresses and routes", "socket", is(0, unix.AF_NETLINK), is(2, unix.NETLINK_ROUTE)),
		allowIf("is it a terminal?", "ioctl", is(1, unix.TCGETS)),
	},
)

// commands is what running iptables and its like takes.
var commands = []Rule{
	allow("iptables and ipset are commands, here and there wrapped in a script", "execve", "pidfd_open", "pidfd_send_signal", "setpgid", "vfork", "wait4", "waitid"),
	allow("iptables-legacy waits for its lock, but not for ever", "alarm", "flock"),
}

// netfilter is for rules, sets, conntrack and the queue.
var netfilter = []Rule{
	allowIf("rules, sets, conntrack and the queue", "socket", is(0, unix.AF_NETLINK), is(2, unix.NETLINK_NETFILTER)),
	allow("--worker-nice", "getpriority", "setpriority"),
}

// packets is for the audit, which judges copies.
var packets = []Rule{
	allowIf("copies of packets", "socket", is(0, unix.AF_PACKET)),
}

// forbidden are refused by name, and with EPERM, because they are what an intruder would
// try; all else is merely missing.
var forbidden = []Rule{
	forbid("other processes", "kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev", "ptrace"),
	forbid("other namespaces and roots", "chroot", "pivot_root", "setns", "unshare"),
	forbid("mounts", "fsconfig", "fsmount", "fsopen", "fspick", "mount", "mount_setattr", "move_mount", "open_tree", "umount2"),
	forbid("programs in the kernel", "bpf", "delete_module", "finit_module", "init_module", "kexec_file_load", "kexec_load", "perf_event_open"),
	forbid("a way around this list", "io_uring_enter", "io_uring_register", "io_uring_setup"),
	forbid("keys", "add_key", "keyctl", "request_key"),
	forbid("other users and more capabilities", "capset", "setfsgid", "setfsuid", "setgid", "setgroups", "setregid", "setresgid", "setresuid", "setreuid", "setuid"),
	forbid("programs that are no file, files without a name", "execveat", "memfd_create", "memfd_secret", "name_to_handle_at", "open_by_handle_at"),
	forbid("what exploits are made of", "personality", "userfaultfd"),
	forbid("devices", "ioperm", "iopl", "mknod", "mknodat"),
	forbid("the machine: its clock, name, log, disks, end", "acct", "adjtimex", "clock_adjtime", "clock_settime", "quotactl", "reboot", "setdomainname",
		"sethostname", "settimeofday", "swapoff", "swapon", "syslog", "vhangup"),
}

func forbid(why string, calls ...string) Rule {
	return Rule{Why: why, Calls: calls, Action: Forbid}
}
