package vmm

import (
	"fmt"
	"slices"

	"github.com/godwit-vmm/godwit/devices/virtio/balloon"
	"github.com/godwit-vmm/godwit/devices/virtio/blk"
	virtionet "github.com/godwit-vmm/godwit/devices/virtio/net"
	"github.com/godwit-vmm/godwit/internal/netflag"
	"github.com/godwit-vmm/godwit/machine"
)

// Config says what machine the guest gets and what it boots.
type Config struct {
	// CPUs is the number of virtual processors, Memory the size of RAM in bytes.
	CPUs   int
	Memory uint64
	// HugePages backs RAM by the host's pool of 2 MiB pages.
	HugePages bool
	// TrackDirty has KVM log from the start which pages the guest writes, for
	// snapshots that hold only what has changed.
	TrackDirty bool
	// Kernel and Initrd are paths; Initrd may be empty.
	Kernel, Initrd string
	// Cmdline is the kernel command line. RootWords appends to it what has the
	// kernel mount the drive that is Root.
	Cmdline   string
	RootWords bool
	// Drives and Nets are in the order in which the guest finds them.
	Drives []Drive
	Nets   []Net
	// Vsock is nil for what Options.Identify says.
	Vsock *Vsock
	// Balloon is nil for none.
	Balloon *balloon.Config
}

// Drive is a disk.
type Drive struct {
	// ID is what the API calls it.
	ID string
	blk.Config
	// Root says that the root file system is here, PartUUID in which partition,
	// if not on the whole disk.
	Root     bool
	PartUUID string
	// Cache and Engine are settings of Firecracker's that change nothing here:
	// what the guest flushes is always flushed, and each request is carried
	// out in the way that is best for it.
	Cache, Engine string
}

// Net is a network card.
type Net struct {
	// ID is what the API calls it.
	ID string
	netflag.Net
}

// Vsock is a vsock device.
type Vsock struct {
	// CID is the guest's, 0 for the usual one. Path is that of the socket.
	CID  uint64
	Path string
}

// clone is a copy that shares nothing that changes.
func (c Config) clone() Config {
	c.Drives, c.Nets = slices.Clone(c.Drives), slices.Clone(c.Nets)
	if c.Vsock != nil {
		v := *c.Vsock
		c.Vsock = &v
	}
	if c.Balloon != nil {
		b := *c.Balloon
		c.Balloon = &b
	}
	return c
}

// cmdline is the command line that the kernel gets.
func (c *Config) cmdline() string {
	i := slices.IndexFunc(c.Drives, func(d Drive) bool { return d.Root })
	if !c.RootWords || i < 0 {
		return c.Cmdline
	}
	root, mode := fmt.Sprintf("/dev/vd%c", 'a'+i), "rw"
	if d := c.Drives[i]; d.PartUUID != "" {
		root = "PARTUUID=" + d.PartUUID
	}
	if c.Drives[i].ReadOnly {
		mode = "ro"
	}
	words := "root=" + root + " " + mode
	if c.Cmdline == "" {
		return words
	}
	return c.Cmdline + " " + words
}

// machineConfig is what a machine for the guest is built from.
func (v *VM) machineConfig() machine.Config {
	c := v.Config()
	m := machine.Config{
		Name: v.o.Name, CPUs: c.CPUs, Memory: c.Memory, HugePages: c.HugePages,
		Kernel: c.Kernel, Initrd: c.Initrd, Cmdline: c.cmdline(),
		Console: v.o.Console, Channel: v.o.Channel, HVC: v.o.HVC,
		Balloon: c.Balloon, Warn: v.warn, Trace: v.trace, ExitTrace: v.o.ExitTrace,
		Vsock: func() (string, error) {
			i, err := v.identity()
			return i.Vsock, err
		},
	}
	if c.Vsock != nil {
		m.VsockCID = c.Vsock.CID
	}
	for _, d := range c.Drives {
		m.Disks = append(m.Disks, d.Config)
	}
	for i, n := range c.Nets {
		m.Nets = append(m.Nets, func() (*virtionet.Device, error) {
			known, err := v.identity()
			if err != nil {
				return nil, err
			}
			return n.Open(known.Name, i, v.o.Capture, v.warn)
		})
	}
	return m
}
