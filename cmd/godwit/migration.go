package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/godwit-vmm/godwit/internal/api"
	"github.com/godwit-vmm/godwit/internal/api/client"
	"github.com/godwit-vmm/godwit/internal/rundir"
	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/live"
	"github.com/spf13/cobra"
)

func newMigration() *cobra.Command {
	c := &cobra.Command{
		Use:   "migration",
		Short: "See which host has a guest that moves, cancel its move, or decide it",
		Args:  cobra.NoArgs,
	}
	c.AddCommand(newMigrationStatus(), newMigrationCancel(), newMigrationResolve())
	return c
}

func newMigrationStatus() *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "status [NAME]",
		Short: "Say which host has the guests that move or have moved",
		Long: `Say of the guests that move, or have moved to or from this host, which host has
them, and what there is to do. That is what this host's journal says, and the
processes of the guests. With a name all that is known of this guest is shown.`,
		Example: `  godwit migration status
  godwit migration status web
  godwit migration status --json | jq -r '.[] | select(.in_doubt).guest'`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			rows, err := listMigrations(cmd.Context(), append(args, "")[0])
			if asJSON {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return errors.Join(e.Encode(rows), err)
			}
			return errors.Join(printMigrations(cmd.OutOrStdout(), rows), err)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print an array of JSON objects")
	return c
}

func newMigrationCancel() *cobra.Command {
	return &cobra.Command{
		Use:   "cancel NAME",
		Short: "Call off a guest's move, as long as this host has not let it go",
		Long: `Call off the move of a guest, which goes on here. Once this host has let the guest
go, only the other one decides; see "godwit migration status".`,
		Example: "  godwit migration cancel web",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return askGuest(cmd.Context(), args[0], func(ctx context.Context, c *client.Client) error {
				return c.Do(ctx, "PATCH", "/migration", api.MigrationUpdate{Action: "cancel"}, nil)
			})
		},
	}
}

// migrationRow is what is known here of one migration.
type migrationRow struct {
	Guest string `json:"guest"`
	// State is a word or two for a person.
	State string `json:"state"`
	// Owner is "here", "there", or "unknown".
	Owner   string    `json:"owner"`
	InDoubt bool      `json:"in_doubt"`
	Peer    string    `json:"peer,omitempty"`
	Since   time.Time `json:"since"`
	ID      string    `json:"id,omitempty"`
	Role    string    `json:"role,omitempty"`
	// PID is the guest's process here; 0 if it has none.
	PID      int            `json:"pid,omitempty"`
	Progress *live.Progress `json:"progress,omitempty"`
	// Missing is memory of a guest that came here that is still at the other host.
	Missing *api.MissingMemory `json:"missing,omitempty"`
	// Says and Todo are for a person.
	Says string   `json:"says"`
	Todo []string `json:"todo,omitempty"`
}

// movingGuest is a guest that runs here, and its last migration.
type movingGuest struct {
	rundir.Info
	api.MigrationStatus
}

// moves says that the guest's migration is under way.
func (g *movingGuest) moves() bool {
	return g != nil && g.Address != "" && g.Report == nil && g.Error == ""
}

// letGo says that this host has let the guest go, and the other one has not answered.
func (g *movingGuest) letGo() bool {
	return g.moves() && g.Progress != nil && g.Progress.Phase.LetGo() && g.Progress.Phase != live.PhaseDone
}

// sendsMemory says that the guest runs at the other host, which has not got all of its
// memory yet.
func (g *movingGuest) sendsMemory() bool {
	return g.moves() && g.Progress != nil && g.Progress.Phase == live.PhasePostCopy
}

// listMigrations is what there is to say of a guest, or of all: of those the newest record
// of each, and what is not over.
func listMigrations(ctx context.Context, name string) ([]migrationRow, error) {
	journal, err := existingJournal()
	if err != nil {
		return nil, err
	}
	var found []handover.Found
	open := make(map[handover.Key]bool)
	if journal != nil {
		if found, err = journal.List(); err != nil {
			return nil, err
		}
		unsettled, err := journal.Unsettled()
		if err != nil {
			return nil, err
		}
		for _, r := range unsettled {
			open[r.Key()] = true
		}
	}
	guests, err := movingGuests(ctx)
	slices.SortFunc(found, func(a, b handover.Found) int {
		return cmp.Or(cmp.Compare(a.VM, b.VM), b.Record.Time.Compare(a.Record.Time))
	})
	rows := []migrationRow{}
	for _, g := range guests {
		if g.moves() && !g.letGo() && (name == "" || g.Name == name) {
			rows = append(rows, g.row())
		}
	}
	for i, f := range found {
		newest := i == 0 || found[i-1].VM != f.VM
		if f.VM == name || name == "" && (newest || open[f.Key] || f.Err != nil) {
			rows = append(rows, describeRecord(f, open[f.Key], guests[f.VM]))
		}
	}
	return rows, err
}

// movingGuests asks all guests that run, as listGuests does.
func movingGuests(ctx context.Context) (map[string]*movingGuest, error) {
	vms, err := rundir.List()
	guests := make(map[string]*movingGuest)
	ctx, cancel := context.WithTimeout(ctx, psTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for _, vm := range vms {
		g := &movingGuest{Info: vm.Info}
		guests[vm.Name] = g
		wg.Go(func() {
			defer vm.Close()
			// One that does not answer is one that runs.
			g.MigrationStatus, _ = lastMigration(ctx, client.New(vm.Path(rundir.APIFile)))
		})
	}
	wg.Wait()
	return guests, err
}

// lastMigration asks a guest's process how its last migration stands, or went.
func lastMigration(ctx context.Context, c *client.Client) (api.MigrationStatus, error) {
	var s api.MigrationStatus
	err := c.Do(ctx, "GET", "/migration", nil, &s)
	return s, err
}

// row is that of a guest that this host has not let go.
func (g *movingGuest) row() migrationRow {
	r := migrationRow{Guest: g.Name, State: "moving", Owner: "here", Peer: g.Address, PID: g.PID, Role: "source", Progress: g.Progress}
	if g.Progress != nil {
		r.Since = time.Now().Add(-g.Progress.Elapsed).UTC()
	}
	r.Says = fmt.Sprintf("It is on its way to %s, and still runs here.", g.Address)
	r.Todo = []string{"godwit migration cancel " + g.Name + " calls it off"}
	return r
}

// describeRecord is the row of a record. open says that it is not over; guest is the one
// of this name that runs here, nil if none does.
func describeRecord(f handover.Found, open bool, guest *movingGuest) migrationRow {
	r := migrationRow{
		Guest: f.VM, ID: f.ID.String(), Role: f.Role.String(), Owner: "unknown",
		Peer: f.Record.Peer, Since: f.Record.Time,
	}
	if guest != nil {
		r.PID = guest.PID
	}
	if r.Peer == "" {
		r.Peer = "another host"
	}
	resolve := "godwit migration resolve " + f.VM
	forget := fmt.Sprintf("to use the name for another guest: %s --forget", resolve)
	switch s := f.Record.State; {
	case f.Err != nil:
		r.State, r.InDoubt = "damaged record", true
		r.Says = fmt.Sprintf("The journal cannot be read: %v. Nobody starts this guest here.", f.Err)
		r.Todo = []string{"find out where it runs, and remove the record: " + resolve + " --forget"}
	case s == handover.StateReleased && open:
		r.inDoubt(guest, resolve)
	case s == handover.StateReleased:
		r.State, r.Owner = "came back", "here"
		r.Says = fmt.Sprintf("It was let go to %s, and was this host's again later.", r.Peer)
	case s == handover.StateGone && guest.sendsMemory():
		r.State, r.Owner, r.Progress = "moved, its memory follows", "there", guest.Progress
		r.Says = fmt.Sprintf("It runs at %s, and needs this host for the rest of its memory, which process %d sends: without that it is lost.", r.Peer, r.PID)
		if why := guest.Progress.Reason; why != "" {
			r.Says += " That does not get there now: " + why + "."
			r.Todo = []string{"repair the network: then it goes on by itself", "if the guest is gone there, end this process: " + resolve + " --give-up"}
		}
	case s == handover.StateGone:
		r.State, r.Owner = "moved away", "there"
		r.Says = fmt.Sprintf("It moved to %s, and is not started here any more%s.", r.Peer, because(f))
		r.Todo = []string{forget}
	case s == handover.StateOwner && f.Role == handover.RoleSource:
		r.State, r.Owner = "taken back", "here"
		r.Says = fmt.Sprintf("It did not move to %s, and is this host's%s.", r.Peer, because(f))
	case s == handover.StateOwner && guest != nil && guest.Missing != nil:
		r.missing(guest.Missing, resolve)
	case s == handover.StateOwner:
		r.State, r.Owner = "came", "here"
		r.Says = fmt.Sprintf("It came from %s, and is this host's.", r.Peer)
		if open {
			r.Todo = []string{"the other host may not know yet that it came, and asks: godwit receive has to run here for as long"}
		}
	case s == handover.StateRefused:
		r.State, r.Owner = "refused", "there"
		r.Says = fmt.Sprintf("It did not come from %s, which keeps it%s.", r.Peer, because(f))
		if open {
			r.Todo = []string{"the other host may not know yet, and asks: godwit receive has to run here for as long"}
		}
	}
	return r
}

// missing describes a guest that runs here without all of its memory.
func (r *migrationRow) missing(m *api.MissingMemory, resolve string) {
	r.State, r.Owner, r.Missing = "came, its memory follows", "here", m
	r.Says = fmt.Sprintf("It came from %s and runs here; %s of its memory are still there, and follow.", r.Peer, size(m.Bytes))
	if m.Reason == "" {
		return
	}
	r.State = "waiting for the source's memory"
	r.Says = fmt.Sprintf("It came from %s; %s of its memory are still there, and do not come: %s.", r.Peer, size(m.Bytes), m.Reason)
	r.Todo = []string{
		"repair the network: then its source dials again by itself",
		"if the guest's process at the source has ended, its memory is lost: end the guest: " + resolve + " --give-up",
	}
}

// inDoubt describes a guest that was let go, and that the other host has not answered for.
func (r *migrationRow) inDoubt(guest *movingGuest, resolve string) {
	r.State, r.InDoubt = "in doubt", true
	r.Says = fmt.Sprintf("This host let it go to %s, which has not said that it took it. It does not run here, and may run there.", r.Peer)
	if guest.letGo() {
		r.Progress = guest.Progress
		if guest.Progress.Phase == live.PhaseHandover {
			r.State = "handover"
		}
		r.Says += fmt.Sprintf(" Its process %d keeps it, and goes on asking.", r.PID)
		r.Todo = []string{"start godwit receive there again, at the same address, or repair the network: then it is decided"}
	} else {
		r.Says += " Its process here has ended, and nobody asks."
		r.Todo = []string{"start godwit receive there again, at the same address, and ask it: " + resolve}
	}
	r.Todo = append(r.Todo,
		"if it can never run there any more: "+resolve+` --run-here --fenced "why it cannot"`,
		"if it runs there, or is not needed: "+resolve+" --give-up")
}

func because(f handover.Found) string {
	if f.Record.Reason == "" {
		return ""
	}
	return ": " + f.Record.Reason
}

func printMigrations(w io.Writer, rows []migrationRow) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(w, "no guest moves, or has moved to or from this host")
		return err
	}
	for _, r := range rows {
		line := fmt.Sprintf("%s: %s", r.Guest, r.State)
		if !r.Since.IsZero() {
			line += fmt.Sprintf(" since %s (%s)", r.Since.Local().Format(time.DateTime), uptimeText(time.Since(r.Since)))
		}
		if _, err := fmt.Fprintf(w, "%s\n    %s\n", printable(line), printable(r.Says)); err != nil {
			return err
		}
		if r.Progress != nil {
			v := migrationView{name: r.Guest}
			fmt.Fprintf(w, "    %s\n", printable(v.line(r.Progress)))
		}
		for _, todo := range r.Todo {
			fmt.Fprintf(w, "    - %s\n", printable(todo))
		}
	}
	return nil
}
