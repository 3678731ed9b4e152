package machine

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/godwit-vmm/godwit/devices/virtio/balloon"
	"github.com/godwit-vmm/godwit/devices/virtio/blk"
	"github.com/godwit-vmm/godwit/devices/virtio/console"
	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/vcpu"
)

// Config says what machine to build and what to boot in it.
type Config struct {
	// Name is for people: it names the guest memory in /proc/PID/maps.
	Name string
	// CPUs is the number of virtual processors, 1 to vcpu.MaxCPUs.
	CPUs int
	// Memory is the size of RAM in bytes, a multiple of the page size.
	Memory uint64
	// HugePages backs RAM by the host's pool of 2 MiB pages.
	HugePages bool
	// Kernel and Initrd are paths; Initrd may be empty.
	Kernel, Initrd string
	// Saved is a machine to go on with instead of booting a kernel. The rest of
	// the configuration says the same as that of the saved machine, but for
	// host paths, names and limits.
	Saved *Saved
	// Incoming builds a machine whose guest still runs elsewhere: with empty
	// memory, its disks inactive, and without a kernel. Load and ActivateDisks
	// come before Run.
	Incoming bool
	// Passed is the memory of a guest that comes from another process of this host
	// (memory.Guest.Share); nil is empty memory. It may be closed when New returns.
	// memory.Guest.Adopt comes before Run.
	Passed *os.File
	// Cmdline is the kernel command line.
	Cmdline string
	// Console and Channel get what the guest writes to its first and second
	// serial port, from one goroutine each. nil discards it.
	Console, Channel io.Writer
	// HVC adds a virtio console, which is hvc0 in the guest, beside the serial
	// ports; nil adds none.
	HVC *console.Config
	// Disks are the block devices.
	Disks []blk.Config
	// Nets are the network cards.
	Nets []Net
	// Balloon adds a memory balloon; nil adds none. The machine sets its Mem.
	Balloon *balloon.Config
	// NoRNG leaves out the entropy device.
	NoRNG bool
	// Vsock tells the path where the socket of the vsock device is to be, by
	// which programs of the host and of the guest reach each other; empty, or
	// a nil function, for no such device. It is called when the VM and its
	// memory are there, so that what it waits for can go beside that.
	Vsock func() (path string, err error)
	// VsockCID is the guest's CID, 0 for the usual one.
	VsockCID uint64
	// Warn, if set, is told of trouble that the guest or the host makes for a
	// device, once for each kind of it. It is called from any goroutine.
	Warn func(error)
	// Trace, if set, is called when a phase of the start is over.
	Trace func(phase string)
	// ExitTrace, if set, gets a line for each access to a device.
	ExitTrace io.Writer
}

// Saved is a machine that was saved.
type Saved struct {
	// State gives the state. It is called when all is done that does not need it,
	// so that the state can be decoded beside that.
	State func() (*State, error)
	// Memory is what its RAM held. The files may be closed when New returns.
	Memory []memory.Extent
	// Serve, if set, begins to bring the pages of the memory, which has none at first,
	// instead of Memory. The function that it returns ends that, when nobody uses the
	// memory any more.
	Serve func(*memory.Guest) (end func() error, err error)
}

// PanicWord is the word of the kernel command line that makes a Linux guest
// tell a panic from a reboot: it leaves the warm reset flag in the BIOS data
// area before it resets the machine after a panic (kernel parameter
// "reboot="), without a driver.
const PanicWord = "reboot=panic_warm"

func (c *Config) check() error {
	if c.CPUs < 1 || c.CPUs > vcpu.MaxCPUs {
		return fmt.Errorf("%d CPUs: want 1 to %d", c.CPUs, vcpu.MaxCPUs)
	}
	if _, err := memory.LayoutRAM(c.Memory); err != nil {
		return err
	}
	if c.Saved != nil {
		if c.Saved.State == nil || c.Saved.Memory == nil && c.Saved.Serve == nil {
			return fmt.Errorf("a saved machine without its state or its memory")
		}
		return nil
	}
	if c.Kernel == "" && !c.Incoming {
		return fmt.Errorf("no kernel given")
	}
	return nil
}

// tellsPanics says whether the guest was asked to mark a reset after a panic.
func (c *Config) tellsPanics() bool {
	last := ""
	for word := range strings.FieldsSeq(c.Cmdline) {
		if strings.HasPrefix(word, "reboot=") {
			last = word
		}
	}
	return last == PanicWord
}
