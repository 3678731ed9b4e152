package api

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/balloon"
	"github.com/godwit-vmm/godwit/devices/virtio/blk"
	virtionet "github.com/godwit-vmm/godwit/devices/virtio/net"
	"github.com/godwit-vmm/godwit/devices/virtio/net/tap"
	"github.com/godwit-vmm/godwit/internal/netflag"
	"github.com/godwit-vmm/godwit/internal/vmm"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/vcpu"
)

// The settings of a guest that is not started. Each is checked as far as that can be
// done without the others, so that an error comes with the request that has it.

// Defaults are the configuration of a guest of which a client has said nothing: that
// of Firecracker.
func Defaults() vmm.Config { return vmm.Config{CPUs: 1, Memory: 128 << 20} }

// DefaultBootArgs are the kernel command line of a boot source without one.
const DefaultBootArgs = "console=ttyS0 panic=-1 " + machine.PanicWord

// Values of huge_pages.
const (
	noHugePages = "None"
	hugePages2M = "2M"
	// transparent asks for what godwit does for all guests without 2M.
	transparent = "Transparent"
)

const (
	// maxMiB bounds numbers of MiB, so that they are as well one of bytes.
	maxMiB = 1 << 32
	// maxInterval bounds a number of seconds.
	maxInterval = 1 << 16
	// maxNetName is the length of the longest name of an interface (IFNAMSIZ).
	maxNetName = 15
	minCID     = 3
	maxCID     = 1<<32 - 2
)

var noMAC virtionet.MAC

func (s *Server) putMachine(r *request) (any, error) {
	m := Machine{HugePages: noHugePages}
	if err := r.read(&m); err != nil {
		return nil, err
	}
	return nil, s.setMachine(m)
}

func (s *Server) setMachine(m Machine) error {
	return s.updateMachine(MachineUpdate{&m.CPUs, &m.MemoryMiB, &m.SMT, &m.TrackDirty, &m.HugePages, &m.Template})
}

func (s *Server) patchMachine(r *request) (any, error) {
	var u MachineUpdate
	if err := r.read(&u); err != nil {
		return nil, err
	}
	if u == (MachineUpdate{}) {
		return nil, fault("Empty PATCH request.")
	}
	return nil, s.updateMachine(u)
}

func (s *Server) updateMachine(u MachineUpdate) error {
	return s.configure("Machine config", func(c *vmm.Config) error {
		if u.SMT != nil && *u.SMT {
			return errors.New("smt: godwit gives the guest processors without hyperthreads: leave it out")
		}
		if u.Template != nil && *u.Template != "" && *u.Template != "None" {
			return fmt.Errorf("cpu_template %s: godwit has no CPU templates: leave it out", *u.Template)
		}
		if u.CPUs != nil {
			if *u.CPUs < 1 || *u.CPUs > vcpu.MaxCPUs {
				return fmt.Errorf("vcpu_count %d: want 1 to %d", *u.CPUs, vcpu.MaxCPUs)
			}
			c.CPUs = *u.CPUs
		}
		if u.MemoryMiB != nil {
			if *u.MemoryMiB > maxMiB {
				return fmt.Errorf("mem_size_mib %d is more than any guest can have", *u.MemoryMiB)
			}
			if _, err := memory.LayoutRAM(*u.MemoryMiB << 20); err != nil {
				return err
			}
			c.Memory = *u.MemoryMiB << 20
		}
		if u.TrackDirty != nil {
			c.TrackDirty = *u.TrackDirty
		}
		if u.HugePages != nil {
			if !slices.Contains([]string{noHugePages, hugePages2M, transparent, ""}, *u.HugePages) {
				return fmt.Errorf("huge_pages %q: want %s, %s or %s", *u.HugePages, noHugePages, transparent, hugePages2M)
			}
			c.HugePages = *u.HugePages == hugePages2M
		}
		if c.HugePages && c.Memory%(2<<20) != 0 {
			return fmt.Errorf("mem_size_mib %d does not make up whole 2 MiB pages", c.Memory>>20)
		}
		return nil
	})
}

// configure changes the configuration. what is said in front of errors.
func (s *Server) configure(what string, change func(*vmm.Config) error) error {
	return within(what, s.vm.Configure(change))
}

func (s *Server) putBootSource(r *request) (any, error) {
	var b BootSource
	if err := r.read(&b); err != nil {
		return nil, err
	}
	return nil, s.setBootSource(b)
}

func (s *Server) setBootSource(b BootSource) error {
	args := DefaultBootArgs
	if b.BootArgs != nil {
		args = s.withoutPCIOff(*b.BootArgs)
	}
	return s.configure("Boot source", func(c *vmm.Config) error {
		if err := checkFile("kernel_image_path", b.Kernel, 0); err != nil {
			return err
		}
		if b.Initrd != "" {
			if err := checkFile("initrd_path", b.Initrd, 0); err != nil {
				return err
			}
		}
		if strings.ContainsAny(args, "\x00\n\r") {
			return errors.New("boot_args: want one line of text")
		}
		c.Kernel, c.Initrd, c.Cmdline, c.RootWords = b.Kernel, b.Initrd, args, true
		return nil
	})
}

// withoutPCIOff takes a word away that examples for Firecracker have, whose devices
// need no PCI bus: those of godwit do.
func (s *Server) withoutPCIOff(args string) string {
	words := strings.Split(args, " ")
	kept := slices.DeleteFunc(slices.Clone(words), func(w string) bool { return w == "pci=off" })
	if len(kept) == len(words) {
		return args
	}
	s.logger.warn("boot_args: pci=off is left out, for the devices of godwit are on a PCI bus")
	return strings.Join(kept, " ")
}

// checkFile checks early that there is a file, or what else of allowed types.
func checkFile(field, path string, allowed fs.FileMode) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	if kind := info.Mode().Type(); kind != 0 && kind != allowed {
		return fmt.Errorf("%s: %s is not a file", field, path)
	}
	return nil
}

// checkID checks the two places where a request has the ID of a resource.
func (r *request) checkID(inBody string) error {
	switch {
	case r.id == "":
		return fault("The ID cannot be empty.")
	case strings.ContainsFunc(r.id, func(c rune) bool {
		return c != '_' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z')
	}):
		return fault("API Resource IDs can only contain alphanumeric characters and underscores.")
	case r.id != inBody:
		return fault(fmt.Sprintf("The id from the path [%s] does not match the id from the body [%s]!", r.id, inBody))
	}
	return nil
}

func (s *Server) putDrive(r *request) (any, error) {
	var d Drive
	if err := r.read(&d); err != nil {
		return nil, err
	}
	if err := r.checkID(d.ID); err != nil {
		return nil, err
	}
	return nil, s.setDrive(d)
}

func (s *Server) setDrive(d Drive) error {
	return s.configure("Drive config", func(c *vmm.Config) error {
		drive, err := d.drive()
		if err != nil {
			return err
		}
		others := slices.DeleteFunc(slices.Clone(c.Drives), func(o vmm.Drive) bool { return o.ID == d.ID })
		if drive.Root {
			if slices.ContainsFunc(others, func(o vmm.Drive) bool { return o.Root }) {
				return fault("A root block device already exists!")
			}
			// The first in the guest, as clients expect.
			c.Drives = slices.Insert(others, 0, drive)
			return nil
		}
		if at := slices.IndexFunc(c.Drives, func(o vmm.Drive) bool { return o.ID == d.ID }); at >= 0 && !c.Drives[at].Root {
			c.Drives[at] = drive
			return nil
		}
		c.Drives = append(others, drive)
		return nil
	})
}

// drive is a drive as godwit has it.
func (d *Drive) drive() (vmm.Drive, error) {
	v := vmm.Drive{
		ID: d.ID, Root: *d.Root, PartUUID: d.PartUUID, Cache: d.CacheType, Engine: d.IOEngine,
		Config: blk.Config{Path: d.Path, ReadOnly: d.ReadOnly},
	}
	switch {
	case d.Socket != "":
		return v, errors.New("socket: godwit has no vhost-user drives: give path_on_host")
	case d.Path == "":
		return v, fault("missing field `path_on_host`")
	case !slices.Contains([]string{"", "Unsafe", "Writeback"}, d.CacheType):
		return v, fmt.Errorf("cache_type %q: want Unsafe or Writeback", d.CacheType)
	case !slices.Contains([]string{"", "Sync", "Async"}, d.IOEngine):
		return v, fmt.Errorf("io_engine %q: want Sync or Async", d.IOEngine)
	case strings.ContainsFunc(d.PartUUID, func(c rune) bool { return c <= ' ' || c == '"' || c > '~' }):
		return v, fmt.Errorf("partuuid %q is none", d.PartUUID)
	}
	if err := checkFile("path_on_host", d.Path, fs.ModeDevice); err != nil {
		return v, err
	}
	var err error
	v.Limit, err = d.Limiter.config()
	return v, err
}

func (s *Server) putNet(r *request) (any, error) {
	var n Net
	if err := r.read(&n); err != nil {
		return nil, err
	}
	if err := r.checkID(n.ID); err != nil {
		return nil, err
	}
	return nil, s.setNet(n)
}

func (s *Server) setNet(n Net) error {
	return s.configure("Network config", func(c *vmm.Config) error {
		net, err := n.net()
		if err != nil {
			return err
		}
		at := len(c.Nets)
		for i, o := range c.Nets {
			switch {
			case o.ID == n.ID:
				at = i
			case net.MAC != noMAC && o.MAC == net.MAC:
				return fmt.Errorf("guest_mac %v is that of %s already", net.MAC, o.ID)
			case o.Tap.Name == net.Tap.Name:
				return fmt.Errorf("host_dev_name %s is that of %s already", net.Tap.Name, o.ID)
			}
		}
		c.Nets = slices.Replace(c.Nets, at, min(at+1, len(c.Nets)), net)
		return nil
	})
}

// net is a network card as godwit has it.
func (n *Net) net() (v vmm.Net, err error) {
	v.ID = n.ID
	v.Net = netflag.Net{Kind: netflag.Tap, Tap: tap.Config{Name: n.HostDev}, MTU: n.MTU}
	if n.HostDev == "" || len(n.HostDev) > maxNetName || strings.ContainsFunc(n.HostDev, func(c rune) bool { return c <= ' ' || c > '~' || c == '/' || c == '%' }) {
		return v, fmt.Errorf("host_dev_name %q is no name of an interface", n.HostDev)
	}
	if n.MTU != 0 && (n.MTU < virtionet.MinMTU || n.MTU > virtionet.MaxMTU) {
		return v, fmt.Errorf("mtu %d: want %d to %d", n.MTU, virtionet.MinMTU, virtionet.MaxMTU)
	}
	if n.MAC != "" {
		if v.MAC, err = virtionet.ParseMAC(n.MAC); err != nil {
			return v, fmt.Errorf("guest_mac: %w", err)
		}
	}
	if v.Receive, err = n.Receive.config(); err != nil {
		return v, err
	}
	v.Send, err = n.Send.config()
	return v, err
}

func (s *Server) putVsock(r *request) (any, error) {
	var v Vsock
	if err := r.read(&v); err != nil {
		return nil, err
	}
	return nil, s.setVsock(v)
}

func (s *Server) setVsock(v Vsock) error {
	return s.configure("Vsock config", func(c *vmm.Config) error {
		switch {
		case v.CID < minCID || v.CID > maxCID:
			return fmt.Errorf("guest_cid %d: want %d to %d", v.CID, minCID, uint64(maxCID))
		case v.Path == "":
			return errors.New("uds_path is empty")
		}
		c.Vsock = &vmm.Vsock{CID: v.CID, Path: v.Path}
		return nil
	})
}

func (s *Server) putEntropy(r *request) (any, error) {
	var e Entropy
	if err := r.read(&e); err != nil {
		return nil, err
	}
	return nil, s.setEntropy(e)
}

// setEntropy has nothing to do: there always is an entropy device.
func (s *Server) setEntropy(e Entropy) error {
	return s.configure("Entropy device", func(*vmm.Config) error {
		if e.Limiter != nil {
			return errors.New("rate_limiter: godwit's entropy device has none: leave it out")
		}
		return nil
	})
}

func (s *Server) putBalloon(r *request) (any, error) {
	var b Balloon
	if err := r.read(&b); err != nil {
		return nil, err
	}
	return nil, s.setBalloon(b)
}

func (s *Server) setBalloon(b Balloon) error {
	return s.configure("Balloon config", func(c *vmm.Config) error {
		switch {
		case b.Hinting:
			return errors.New("free_page_hinting: godwit's balloon has none: use free_page_reporting")
		case b.AmountMiB > c.Memory>>20:
			return fmt.Errorf("amount_mib %d: the guest has %d", b.AmountMiB, c.Memory>>20)
		case b.StatsInterval > maxInterval:
			return fmt.Errorf("stats_polling_interval_s %d: want at most %d", b.StatsInterval, maxInterval)
		}
		c.Balloon = &balloon.Config{
			Target: b.AmountMiB << 20, DeflateOnOOM: b.DeflateOnOOM, FreePageReporting: b.Reporting,
			StatsInterval: time.Duration(b.StatsInterval) * time.Second,
		}
		return nil
	})
}
