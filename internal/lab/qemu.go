package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// emulator is the program of QEMU that emulates x86-64 machines.
const emulator = "qemu-system-x86_64"

// The logs in a host's folder.
const (
	consoleLog = "console.log"
	qemuLog    = "qemu.log"
)

// Agent ports: number 0 belongs to the process that started the host; the
// others, if there are any, to whoever connects.
const (
	agentPorts  = 16
	portPrefix  = "agent"
	maxVirtPort = 31 // of one virtio console
)

func portName(number int) string { return fmt.Sprintf("%s%d", portPrefix, number) }

// cpuModel has SVM with nested paging. It has no XSAVE, and so no AVX: QEMU does
// not intercept a nested guest's XSETBV, so KVM in the host does not learn of
// the XCR0 that the guest set and enters it with another one. Its FXSAVE-sized
// state then loses what the guest believes is saved, and now and then a guest
// dies of that.
const cpuModel = "EPYC-v3,+svm,+npt,-xsave,-avx,-avx2,-f16c,-fma"

// invocation is a command line of QEMU in the making.
type invocation struct {
	dir   string
	args  []string
	files []*os.File // that QEMU inherits
}

func newInvocation(o Options, dir string) *invocation {
	q := &invocation{dir: dir}
	q.add("-name", HostName(o.Number),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35",
		"-accel", "tcg,thread=multi",
		"-cpu", cpuModel,
		"-smp", strconv.Itoa(o.CPUs),
		"-m", strconv.Itoa(o.MemoryMiB),
		"-kernel", o.Kernel.Path,
		"-append", kernelCmdline(o),
		"-chardev", "file,id=console,path="+consoleLog, "-serial", "chardev:console",
		"-device", "virtio-rng-pci",
		"-device", fmt.Sprintf("virtio-serial-pci,max_ports=%d", maxVirtPort),
	)
	return q
}

// kernelCmdline is the command line of the host's kernel. Most words save boot
// time under emulation.
func kernelCmdline(o Options) string {
	words := []string{
		"console=ttyS0", "panic=-1", "quiet",
		"mitigations=off",
		// Under emulation timers are late enough for the kernel to
		// distrust them.
		"no_timer_check", "tsc=reliable",
		// Calibrating the delay loop of a second CPU takes most of a
		// second. Only delays for hardware depend on the value, and
		// here all hardware is fast.
		"lpj=5000000",
		"cryptomgr.notests",
		"godwit.agent=vport:" + portPrefix,
		"godwit.hostname=" + HostName(o.Number),
		"godwit.thp",
		"godwit.holdkvm",
	}
	if o.Network != nil {
		words = append(words, "godwit.ip="+Address(o.Number).String())
	}
	return strings.Join(words, " ")
}

func (q *invocation) add(args ...string) { q.args = append(q.args, args...) }

// inherit makes a file one of QEMU's and gives its descriptor number there.
func (q *invocation) inherit(f *os.File) int {
	q.files = append(q.files, f)
	return 2 + len(q.files)
}

func (q *invocation) initrd(f *os.File) {
	q.add("-initrd", fmt.Sprintf("/proc/self/fd/%d", q.inherit(f)))
}

func (q *invocation) privatePort(socket *os.File) {
	q.port(0, fmt.Sprintf("fd=%d", q.inherit(socket)))
}

// monitor makes the socket of QEMU's monitor in the host's folder, for whoever
// has to find out why a host hangs.
func (q *invocation) monitor() {
	q.add("-chardev", "socket,id=monitor,path=monitor,server=on,wait=off", "-mon", "chardev=monitor,mode=readline")
}

// sharedPorts make sockets in the host's folder, relative to which QEMU runs:
// the path of a socket must be short.
func (q *invocation) sharedPorts() {
	for i := 1; i < agentPorts; i++ {
		q.port(i, "path="+portName(i)+",server=on,wait=off")
	}
}

func (q *invocation) port(number int, socket string) {
	name := portName(number)
	q.add("-chardev", fmt.Sprintf("socket,id=%s,%s", name, socket),
		"-device", fmt.Sprintf("virtserialport,chardev=%s,name=%s,nr=%d", name, name, number+1))
}

func (q *invocation) network(socket *os.File, number int) {
	q.add("-netdev", fmt.Sprintf("socket,id=net,fd=%d", q.inherit(socket)),
		"-device", fmt.Sprintf("virtio-net-pci,netdev=net,mac=52:54:00:4d:00:%02x,romfile=", number))
}

// disk adds an image that other hosts may have as well. What a host has written the others
// see when they read the disk itself, and not their page cache.
func (q *invocation) disk(number int, path string) {
	id := fmt.Sprintf("disk%d", number)
	// In QEMU's syntax a comma in a value is written twice.
	path = strings.ReplaceAll(path, ",", ",,")
	q.add("-blockdev", fmt.Sprintf("driver=raw,node-name=%s,file.driver=file,file.locking=off,file.filename=%s", id, path),
		"-device", fmt.Sprintf("virtio-blk-pci,drive=%s,share-rw=on,serial=%s", id, id))
}

// machine is a running QEMU.
type machine struct {
	process *os.Process
	done    chan struct{} // closed when it has ended
	err     error         // how, after done
}

// start starts QEMU. It dies with this process, and when the context ends.
func (q *invocation) start(ctx context.Context) (*machine, error) {
	program, err := exec.LookPath(emulator)
	if err != nil {
		return nil, fmt.Errorf("%s is not installed: install it (Debian, Ubuntu: apt-get install qemu-system-x86)", emulator)
	}
	log, err := os.Create(filepath.Join(q.dir, qemuLog))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(program, q.args...)
	cmd.Dir = q.dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = q.files
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		// ^C at the terminal is for this process, which then ends QEMU.
		Setpgid: true,
	}
	m := &machine{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The death signal comes when the thread ends that started
		// QEMU, so this one must last as long.
		runtime.LockOSThread()
		err := cmd.Start()
		m.process = cmd.Process
		started <- err
		if err != nil {
			return
		}
		m.err = cmd.Wait()
		if m.err == nil {
			m.err = errors.New("the machine was powered off, or its kernel panicked")
		}
		close(m.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	return m, nil
}

// kill ends QEMU and waits for its end.
func (m *machine) kill() {
	// The one error there can be is that it has ended already.
	m.process.Kill()
	<-m.done
}
