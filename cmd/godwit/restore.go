package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	virtionet "github.com/godwit-vmm/godwit/devices/virtio/net"
	"github.com/godwit-vmm/godwit/guest/agent"
	"github.com/godwit-vmm/godwit/internal/vmm"
	"github.com/godwit-vmm/godwit/migrate/snapshot"
	"github.com/spf13/cobra"
)

// The values of --clock.
const (
	clockHost     = "host"
	clockSaved    = "saved"
	clockRealtime = "realtime"
)

func newRestore() *cobra.Command {
	o := bootOptions{load: &vmm.LoadRequest{Resume: true}, console: consoleSerial}
	var disks, taps []string
	var paused bool
	clock := clockHost
	c := &cobra.Command{
		Use:   "restore DIR",
		Short: "Make a saved guest go on",
		Long: `Make a guest go on that "godwit snapshot" has saved.

Its memory is mapped from the snapshot, whatever its size, and shared with other
guests from the same one; the snapshot stays as it is, and must stay while the guest
runs. The disks have to be as they were: --disk names them where they are elsewhere
by now, and what is not there yet is made from the snapshot's own copy.

The guest's wall clock is set by its agent, and its random number generator gets a
new seed.`,
		Example: `  godwit restore /var/snap/web                       its console here
  godwit restore /var/snap/web --detach --name web2
  godwit restore /var/snap/web --disk 0=/images/web.img`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.named = cmd.Flags().Changed("name")
			o.needed = o.named || o.wait || o.detach
			if _, started := os.LookupEnv(readyVariable); (o.wait || o.detach) && !started {
				return bootInBackground(cmd.Context(), &o, cmd.OutOrStdout())
			}
			if !slices.Contains([]string{clockHost, clockSaved, clockRealtime}, clock) {
				return fmt.Errorf("--clock %s: want %s, %s or %s", clock, clockHost, clockSaved, clockRealtime)
			}
			o.load.ClockRealtime = clock == clockRealtime
			if paused && o.wait {
				return errors.New("--wait for a guest that is --paused would be for ever: leave one out")
			}
			o.load.Path, o.load.Resume = args[0], !paused
			var err error
			if o.load.Disks, err = pairs("--disk", disks); err != nil {
				return err
			}
			if o.load.Taps, err = pairs("--tap", taps); err != nil {
				return err
			}
			return restore(cmd.Context(), &o, clock != clockSaved)
		},
	}
	f := c.Flags()
	f.StringVar(&o.name, "name", "", "name of the guest (default: that of the saved one, or the first free one with a number)")
	f.StringArrayVar(&disks, "disk", nil, "have the disk ID (\"godwit snapshot info\" shows them) at another `ID=PATH`; may be repeated")
	f.StringVar(&o.load.Overlays, "overlay", "", "have what the guest writes to its disks go to new overlays in `FOLDER`, and leave the disks, or their copies in the snapshot, as they are")
	f.BoolVar(&o.load.Ephemeral, "ephemeral", false, "like --overlay, and forget what was written when the guest ends; with it the folder is optional")
	f.BoolVar(&o.load.NewMACs, "new-mac", false, "give the network cards new MAC addresses, which come from the guest's name, so that it can run beside the saved one")
	f.StringArrayVar(&taps, "tap", nil, "connect the network card ID to another tap interface `ID=NAME`; may be repeated")
	f.StringVar(&o.vsock, "vsock", "", "have the socket of the guest's vsock device at `PATH` (default: in the folder of the running guest)")
	f.BoolVar(&o.load.TrackDirty, "track", false, "keep track of what the guest writes, so that its next snapshot can be a --diff on this one")
	f.BoolVar(&o.load.Prefetch, "prefetch", false, "map at once what memory the guest used when it was restored before; the first time, note in the snapshot what it uses")
	f.DurationVar(&o.load.Record, "record", 0, "note in the snapshot, after this time or at the guest's end, what memory it uses, for --prefetch")
	f.BoolVar(&paused, "paused", false, "leave the guest paused, until \"godwit resume\"")
	f.StringVar(&clock, "clock", clock, "what the guest's clocks show: the wall clock the time of the host, which its agent sets (host); both go on from what was saved (saved); both have gone on since then, so that timers that are due fire, agent or not (realtime)")
	f.BoolVar(&o.detach, "detach", false, "restore in the background, print the guest's name and end as soon as the guest runs")
	f.BoolVar(&o.wait, "wait", false, "restore in the background, print the guest's name and end when its agent answers")
	f.DurationVar(&o.waitTimeout, "wait-timeout", 2*time.Minute, "end a guest that does not answer after this time with --wait; 0 waits for ever")
	f.BoolVar(&o.allowSoftware, "allow-software-kvm", false, "go on where KVM emulates ring 0 (Linux does not run there)")
	f.BoolVar(&o.noReboot, "no-reboot", false, "end when the guest reboots, instead of rebooting it")
	f.StringVar(&o.timings, "timings", "", "write when each phase of the start was over to `FILE`, as JSON lines")
	return c
}

// pairs takes ID=VALUE apart.
func pairs(flag string, texts []string) (map[string]string, error) {
	all := make(map[string]string)
	for _, text := range texts {
		id, value, ok := strings.Cut(text, "=")
		if !ok || id == "" || value == "" {
			return nil, fmt.Errorf("%s %s: want ID=VALUE, such as 0=/images/web.img", flag, text)
		}
		all[id] = value
	}
	return all, nil
}

// restore runs a saved guest.
func restore(ctx context.Context, o *bootOptions, setClock bool) error {
	trace, err := newTimings(o.timings)
	if err != nil {
		return err
	}
	defer trace.close()
	// Beside the opening of KVM, once for all who want to know something of it.
	o.load.Opened = sync.OnceValues(func() (*snapshot.Chain, error) { return snapshot.OpenChain(o.load.Path) })
	go o.load.Opened()
	n := o.naming
	n.complete = func(n *naming) error {
		s, err := o.load.Opened()
		if err != nil {
			return err
		}
		if n.name == "" {
			n.name = nameIn(s.Newest())
		}
		// A guest that had no such device does not get one.
		if n.vsock == "" && !hadVsock(s.Newest().Manifest()) {
			n.vsock = vsockOff
		}
		return nil
	}
	run := vmm.Options{Name: n.name, NoReboot: o.noReboot, Trace: trace.mark}
	var changed macChanges
	o.load.MACChanged = changed.add
	n.renew = func(ctx context.Context, c *agent.Client) { renew(ctx, c, setClock, changed.all()) }
	r := register(n)
	err = bootOn(ctx, run, vmm.Config{}, o, r, trace)
	if i, e := r.wait(); e == nil {
		err = errors.Join(err, i.close())
	}
	return err
}

// savedName is the name of the guest that a snapshot is of.
func savedName(dir string) (string, error) {
	s, err := snapshot.Open(dir)
	if err != nil {
		return "", err
	}
	defer s.Close()
	return nameIn(s), nil
}

func nameIn(s *snapshot.Snapshot) string {
	if name := s.Manifest().Name; name != "" {
		return name
	}
	return "godwit"
}

// hadVsock says whether a saved guest had a vsock device.
func hadVsock(m *snapshot.Manifest) bool {
	return slices.ContainsFunc(m.Devices, func(d snapshot.Device) bool { return d.Type == "vsock" })
}

// macChanges are addresses of network cards that a guest has to be told of.
type macChanges struct {
	mu      sync.Mutex
	changes []macChange
}

type macChange struct{ old, new net.HardwareAddr }

// add is vmm.LoadRequest.MACChanged.
func (m *macChanges) add(old, new virtionet.MAC) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changes = append(m.changes, macChange{old[:], new[:]})
}

func (m *macChanges) all() []macChange {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changes
}

// renew tells a restored guest what has become another one meanwhile. A guest whose
// agent cannot, goes on without.
func renew(ctx context.Context, c *agent.Client, setClock bool, macs []macChange) {
	err := c.Reseed(ctx)
	for _, m := range macs {
		err = errors.Join(err, c.SetMAC(ctx, m.old, m.new))
	}
	if setClock {
		err = errors.Join(err, c.SetTime(ctx, time.Now()))
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintf(os.Stderr, "godwit: %v\r\n", err)
	}
}
