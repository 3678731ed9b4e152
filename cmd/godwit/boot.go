package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/balloon"
	"github.com/godwit-vmm/godwit/devices/virtio/blk"
	"github.com/godwit-vmm/godwit/guest"
	"github.com/godwit-vmm/godwit/internal/flags"
	"github.com/godwit-vmm/godwit/internal/netflag"
	"github.com/godwit-vmm/godwit/internal/vmm"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/vcpu"
	"github.com/spf13/cobra"
)

// bootOptions are the flags of boot.
type bootOptions struct {
	naming
	kernel, initrd string
	cmdline        string
	bareCmdline    bool
	cpus           int
	memory         flags.Size
	hugePages      bool
	wait           bool // in the background, until the guest is up
	detach         bool // in the background, until the guest runs
	waitTimeout    time.Duration
	allowSoftware  bool
	noReboot       bool
	verbose        bool
	root           []blk.Config // none or one
	disks          []blk.Config
	nets           netflag.List
	pcap           string
	balloon        *flags.Size // nil for none
	console        string
	timings        string
	exitTrace      string
	command        []string
	// load is the snapshot to go on with, instead of booting.
	load *vmm.LoadRequest
}

func newBoot() *cobra.Command {
	o := bootOptions{cpus: 1, memory: 512 << 20, balloon: new(flags.Size)}
	c := &cobra.Command{
		Use:   "boot [flags] [-- COMMAND...]",
		Short: "Boot a guest: a console, or one command",
		Long: `Boot a Linux guest.

Without a command the guest's serial console is on this terminal; Ctrl-a x
quits. With a command, godwit's own initramfs runs it: its output comes out
here, its exit status is godwit's, and the guest is switched off after it.

Without --kernel the guest is the cached Debian kernel with godwit's own
initramfs ("godwit guest kernel" and "godwit guest initramfs" make them).

While it runs, "godwit exec", "cp" and "wait" find the guest by its name. With
--detach it is left in the background, and with --wait as well, once it is up.

SIGTERM presses the guest's power button, a second one kills the guest.`,
		Example: `  godwit boot                                   a shell
  godwit boot --cpus 2 --memory 1G -- nproc     a command
  godwit boot -- sh -c 'exit 3'; echo $?        its exit status
  godwit boot --root disk.img                   a shell in a root file system
  godwit boot --name web --wait && godwit exec web -- uptime
  godwit boot --kernel vmlinuz --initrd initrd.img --cmdline 'root=/dev/vda1'`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && cmd.ArgsLenAtDash() != 0 {
				return fmt.Errorf("unexpected argument %q: a command for the guest goes after --", args[0])
			}
			o.command = args
			o.named = cmd.Flags().Changed("name")
			o.needed = o.named || o.wait || o.detach
			if _, started := os.LookupEnv(readyVariable); (o.wait || o.detach) && !started {
				return bootInBackground(cmd.Context(), &o, cmd.OutOrStdout())
			}
			if !cmd.Flags().Changed("balloon") {
				o.balloon = nil
			}
			return boot(cmd.Context(), &o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.kernel, "kernel", "", "kernel `FILE`: bzImage or ELF vmlinux (default: the cached one)")
	f.StringVar(&o.initrd, "initrd", "", "initial RAM disk `FILE` (default: godwit's own with the cached kernel, else none)")
	f.StringVar(&o.cmdline, "cmdline", "", "words to add to the kernel command line; later words win")
	f.BoolVar(&o.bareCmdline, "bare-cmdline", false, "use --cmdline alone, without godwit's own words")
	f.IntVar(&o.cpus, "cpus", o.cpus, fmt.Sprintf("number of virtual processors, 1 to %d", vcpu.MaxCPUs))
	f.Var(&o.memory, "memory", "guest memory, such as 512M or 4G")
	f.Var(diskFlag{&o.root}, "root", "boot from the root file system on this disk: "+diskHelp)
	f.Var(diskFlag{&o.disks}, "disk", "add a disk, a raw image or a block device; may be repeated: "+diskHelp)
	f.Var(&o.nets, "net", netflag.Usage)
	f.StringVar(&o.pcap, "pcap", "", "write what passes the network cards to `FILE`, for tcpdump or Wireshark")
	f.Var(o.balloon, "balloon", "add a memory balloon, which takes this much from the guest at first and gives free pages back to the host; 0 takes nothing yet")
	f.BoolVar(&o.hugePages, "hugepages", false, "back guest memory by the host's 2 MiB huge page pool")
	f.StringVar(&o.name, "name", "godwit", "name of the guest, for exec, cp and wait (default: the first free one of godwit, godwit-2, ...)")
	f.StringVar(&o.vsock, "vsock", "", "have the socket of the guest's vsock device at `PATH`, for other programs, or \"off\" for no such device (default: in the folder of the running guest)")
	f.StringVar(&o.console, "console", consoleSerial, "what the terminal is in the guest: serial (ttyS0) or hvc (hvc0, which follows the size of the window)")
	f.BoolVar(&o.detach, "detach", false, "boot in the background, print the guest's name and end as soon as the guest runs")
	f.BoolVar(&o.wait, "wait", false, "boot in the background, print the guest's name and end when its agent says that it is up")
	f.DurationVar(&o.waitTimeout, "wait-timeout", 2*time.Minute, "end a guest that is not up after this time with --wait; 0 waits for ever")
	f.BoolVar(&o.allowSoftware, "allow-software-kvm", false, "go on where KVM emulates ring 0 (Linux will not boot there)")
	f.BoolVar(&o.noReboot, "no-reboot", false, "end when the guest reboots, instead of rebooting it")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "show all kernel messages; with a command, show the console on stderr")
	f.StringVar(&o.exitTrace, "exit-trace", "", "write each access of the guest to a device to `FILE`; slow")
	f.StringVar(&o.timings, "timings", "", "write when each phase of the start was over to `FILE`, as JSON lines")
	return c
}

// labCommand is the way out on a machine whose KVM cannot run Linux.
const labCommand = "godwit-lab run -- boot"

func boot(ctx context.Context, o *bootOptions) error {
	trace, err := newTimings(o.timings)
	if err != nil {
		return err
	}
	defer trace.close()
	c, err := o.config()
	if err != nil {
		return err
	}
	run := vmm.Options{Name: o.name, NoReboot: o.noReboot, Trace: trace.mark}
	if o.exitTrace != "" {
		f, err := os.Create(o.exitTrace)
		if err != nil {
			return fmt.Errorf("--exit-trace: %w", err)
		}
		defer f.Close()
		run.ExitTrace = f
	}
	r := register(o.naming)
	err = bootOn(ctx, run, c, o, r, trace)
	if i, e := r.wait(); e == nil {
		err = errors.Join(err, i.close())
	}
	return err
}

// bootOn boots on this machine's KVM. An error of the registration is among those
// that it returns, unless it did not come to need it.
func bootOn(ctx context.Context, run vmm.Options, c vmm.Config, o *bootOptions, r *registration, trace *timings) error {
	sys, err := openKVM(o.allowSoftware, trace)
	if sys != nil {
		defer sys.Close()
	}
	if err != nil {
		return err
	}
	run.System, run.Identify = sys, r.identify
	stopCapture, err := capture(&run, o.pcap)
	if err != nil {
		return err
	}
	if len(o.command) > 0 {
		return errors.Join(bootCommand(ctx, run, c, o, r), stopCapture())
	}
	return errors.Join(bootConsole(ctx, run, c, o, r), stopCapture())
}

// openKVM opens KVM, if it is one that Linux boots on or the user wants it all the
// same. After an error there may be something to close.
func openKVM(allowSoftware bool, trace *timings) (*kvm.System, error) {
	sys, err := kvm.Open("")
	if err != nil {
		return nil, fmt.Errorf("%w\nto boot in an emulated host instead: %s", err, labCommand)
	}
	sys.AskCPUID()
	trace.mark("open")
	if !allowSoftware {
		err = refuseSoftware(sys)
		trace.mark("probe")
	}
	return sys, err
}

// refuseSoftware fails where KVM has no hardware below it: a stock kernel would
// run for minutes there and then die.
func refuseSoftware(sys *kvm.System) error {
	// The modules for VMX and SVM load only where the processor has them.
	// Without one, a test guest tells; that takes its time.
	for _, module := range []string{"kvm_intel", "kvm_amd"} {
		if _, err := os.Stat("/sys/module/" + module); err == nil {
			return nil
		}
	}
	ns, err := kvm.ProbeRing0(sys)
	if err != nil {
		return fmt.Errorf("measure this host's KVM: %w", err)
	}
	if ns < kvm.SoftwareNsPerInsn {
		return nil
	}
	return fmt.Errorf("KVM here has no hardware virtualization: it emulates a guest's kernel at %.0f ns an instruction, and Linux does not boot on it\n"+
		"boot in an emulated host instead:  %s\n"+
		"or, for a guest made for it:       godwit boot --allow-software-kvm", ns, labCommand)
}

// config turns flags into a machine.
func (o *bootOptions) config() (vmm.Config, error) {
	c := vmm.Config{
		CPUs: o.cpus, Memory: uint64(o.memory), HugePages: o.hugePages,
		Kernel: o.kernel, Initrd: o.initrd,
	}
	if c.Kernel == "" {
		k, err := guest.CachedKernel()
		if errors.Is(err, guest.ErrNotCached) {
			return c, fmt.Errorf("%w: fetch one with: godwit guest kernel, or give --kernel FILE", err)
		}
		if err != nil {
			return c, err
		}
		c.Kernel = k.Path
		if c.Initrd == "" {
			if c.Initrd, err = k.CachedImage(guest.GuestImage); err != nil {
				return c, fmt.Errorf("%w: build it with: godwit guest initramfs", err)
			}
		}
	} else if len(o.command) > 0 && c.Initrd == "" {
		return c, errors.New("a command needs an initramfs with godwit's agent: give --initrd, or leave out --kernel for godwit's own")
	}
	if err := checkConsole(o.console); err != nil {
		return c, err
	}
	if o.pcap != "" && len(o.nets) == 0 {
		return c, errors.New("--pcap without a network card has nothing to write: add one with --net")
	}
	if len(o.root) > 1 {
		return c, errors.New("--root was given twice: a guest has one root file system, other disks go to --disk")
	}
	for i, d := range append(o.root[:len(o.root):len(o.root)], o.disks...) {
		c.Drives = append(c.Drives, vmm.Drive{ID: strconv.Itoa(i), Config: d, Root: i < len(o.root)})
	}
	for i, n := range o.nets {
		c.Nets = append(c.Nets, vmm.Net{ID: "net" + strconv.Itoa(i), Net: n})
	}
	if o.balloon != nil {
		c.Balloon = &balloon.Config{Target: uint64(*o.balloon), DeflateOnOOM: true, FreePageReporting: true}
	}
	c.Cmdline = o.kernelCmdline()
	return c, nil
}

// kernelCmdline puts the command line together: godwit's words, then the user's.
func (o *bootOptions) kernelCmdline() string {
	if o.bareCmdline {
		return o.cmdline
	}
	words := []string{o.consoleWord(), "panic=-1", machine.PanicWord}
	if !o.verbose {
		words = append(words, "quiet")
	}
	if len(o.command) > 0 {
		// The serial port is for a kernel without vsock.
		words = append(words, "godwit.agent=vsock,ttyS1")
	} else {
		words = append(words, terminalWords()...)
	}
	if len(o.root) > 0 {
		// The first disk; godwit's initramfs mounts it.
		words = append(words, "root=/dev/vda", "rw")
		if o.root[0].ReadOnly {
			words[len(words)-1] = "ro"
		}
	}
	if o.cmdline != "" {
		words = append(words, o.cmdline)
	}
	return strings.Join(words, " ")
}

// ended turns the end of a guest into what godwit ends with.
func ended(outcome machine.Outcome, err error) error {
	var crash *vcpu.Crash
	switch {
	case err != nil && outcome == machine.Reset:
		return err
	case errors.As(err, &crash):
		fmt.Fprint(os.Stderr, crash.Dump())
		return fmt.Errorf("the guest crashed: %w", err)
	case err != nil:
		return fmt.Errorf("the guest crashed: %w", err)
	}
	switch outcome {
	case machine.PoweredOff, machine.Reset:
		return nil
	case machine.Panicked:
		return errors.New("the guest's kernel panicked; its last words are on the console (-v shows all of them)")
	default:
		return fmt.Errorf("the guest %v", outcome)
	}
}
