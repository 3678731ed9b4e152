package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/godwit-vmm/godwit/internal/api/client"
	"github.com/godwit-vmm/godwit/internal/rundir"
	"github.com/godwit-vmm/godwit/migrate/live"
	"github.com/spf13/cobra"
)

// psTimeout is how long ps waits for what a guest's VMM says. All are asked at
// once.
const psTimeout = 1500 * time.Millisecond

// States that ps shows beside those of the API, which it writes small.
const (
	stateStarting = "starting"
	// stateArriving is that of a guest that another host sends, and still has.
	stateArriving     = "arriving"
	stateNotAnswering = "not answering"
	// stateMoved is that of a guest that runs on another host by now.
	stateMoved = "moved"
	// stateUnknown is that of a guest whose VMM has another version, say.
	stateUnknown = "unknown"
)

func newPS() *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "ps",
		Short: "List the guests that run",
		Long: `List this user's running guests. MEMORY is what a guest takes up of the host's
memory, and what it has been granted: its size less what its balloon holds. A guest
whose VMM does not answer is shown as that; what killed ones left is removed. A guest
that another host sends is arriving until it runs here, and one that runs elsewhere by
now has moved.`,
		Example: `  godwit ps
  godwit ps --json | jq -r '.[] | select(.state == "paused").name'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// What a killed guest left and cannot be removed does not hide the
			// others.
			guests, err := listGuests(cmd.Context(), psTimeout)
			show := printGuests
			if asJSON {
				show = printGuestsJSON
			}
			return errors.Join(show(cmd.OutOrStdout(), guests), err)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print an array of JSON objects; sizes are in bytes")
	return c
}

// guestRow is what ps shows of a guest. Numbers that are not known are 0.
type guestRow struct {
	Name  string `json:"name"`
	State string `json:"state"`
	// Moving is "moving", "in doubt" or "sending memory" for a guest that moves, to the
	// host Peer, and "waiting for memory" for one that came and has not got all of it.
	Moving  string    `json:"moving,omitempty"`
	Peer    string    `json:"peer,omitempty"`
	CPUs    int       `json:"cpus,omitempty"`
	Used    uint64    `json:"memory_used,omitempty"`
	Granted uint64    `json:"memory_granted,omitempty"`
	Memory  uint64    `json:"memory,omitempty"`
	Uptime  float64   `json:"uptime_seconds"`
	Started time.Time `json:"started"`
	PID     int       `json:"pid"`
}

// listGuests asks all guests that run, by name, and waits for none longer than the
// timeout.
func listGuests(ctx context.Context, timeout time.Duration) ([]guestRow, error) {
	vms, err := rundir.List()
	rows := make([]guestRow, len(vms))
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var wg sync.WaitGroup
	for i, vm := range vms {
		wg.Go(func() {
			defer vm.Close()
			rows[i] = describeGuest(ctx, vm)
		})
	}
	wg.Wait()
	return rows, err
}

func describeGuest(ctx context.Context, vm *rundir.VM) guestRow {
	row := guestRow{Name: vm.Name, Started: vm.Started, Uptime: time.Since(vm.Started).Seconds(), PID: vm.PID}
	c := client.New(vm.Path(rundir.APIFile))
	stats, err := c.Stats(ctx)
	var refused *client.Fault
	switch {
	case errors.Is(err, client.ErrNobody) && vm.Arriving:
		row.State = stateArriving
	case errors.Is(err, client.ErrNobody):
		row.State = stateStarting
	case errors.As(err, &refused):
		row.State = stateUnknown
	case err != nil:
		row.State = stateNotAnswering
	default:
		row.State = strings.ToLower(stats.State)
		row.CPUs, row.Used, row.Granted, row.Memory = stats.CPUs, stats.Used, stats.Granted, stats.Memory
		moving, err := lastMigration(ctx, c)
		// A VMM of before migrations does not know the question; one that has ended
		// since the last one does not run its guest.
		if err != nil && !errors.As(err, &refused) {
			row.State = stateNotAnswering
		}
		row.moving(movingGuest{vm.Info, moving})
	}
	return row
}

// moving shows a guest that moves.
func (r *guestRow) moving(g movingGuest) {
	switch {
	case g.Missing != nil && g.Missing.Reason != "":
		r.Moving = "waiting for memory"
	case g.sendsMemory():
		r.Moving, r.Peer = "sending memory", g.Address
	case g.letGo() && g.Progress.Phase != live.PhaseHandover:
		r.Moving, r.Peer = "in doubt", g.Address
	case g.moves():
		r.Moving, r.Peer = "moving", g.Address
	case g.Report != nil && g.Error == "":
		// The process only has to end.
		r.State = stateMoved
	}
}

// state is that of the guest and of its move, for people.
func (r *guestRow) state() string {
	switch {
	case r.Moving == "":
		return r.State
	case r.Peer == "":
		return fmt.Sprintf("%s, %s", r.State, r.Moving)
	}
	return fmt.Sprintf("%s, %s to %s", r.State, r.Moving, r.Peer)
}

func printGuestsJSON(w io.Writer, guests []guestRow) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(guests)
}

func printGuests(w io.Writer, guests []guestRow) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "NAME\tSTATE\tCPUS\tMEMORY\tUPTIME\tPID")
	for _, g := range guests {
		cpus, memory := "-", "-"
		if g.CPUs > 0 {
			cpus = fmt.Sprint(g.CPUs)
		}
		if g.Granted > 0 {
			memory = sizeText(g.Used) + "/" + sizeText(g.Granted)
		}
		uptime := uptimeText(time.Duration(g.Uptime * float64(time.Second)))
		// Of a guest's name every byte is harmless; its state is what a VMM
		// says.
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\n", g.Name, printable(g.state()), cpus, memory, uptime, g.PID)
	}
	return t.Flush()
}

// sizeText is a size for people, short: 512M, 1.5G. 0 is one that is not known.
func sizeText(n uint64) string {
	if n == 0 {
		return "-"
	}
	units, size := "KMGT", float64(n)/1024
	for size >= 1023.5 && len(units) > 1 {
		units, size = units[1:], size/1024
	}
	text := fmt.Sprintf("%.0f", size)
	if size < 9.95 {
		text = strings.TrimSuffix(fmt.Sprintf("%.1f", size), ".0")
	}
	return text + units[:1]
}

// uptimeText is a time for people, in its two largest units.
func uptimeText(d time.Duration) string {
	s := int64(max(d, 0) / time.Second)
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 60*60:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	case s < 24*60*60:
		return fmt.Sprintf("%dh%02dm", s/3600, s/60%60)
	}
	return fmt.Sprintf("%dd%02dh", s/86400, s/3600%24)
}

// printable replaces what a terminal could take for more than text.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}
