package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"slices"
	"sync"
	"time"

	"github.com/godwit-vmm/godwit/internal/api/client"
	"github.com/godwit-vmm/godwit/internal/events"
	"github.com/godwit-vmm/godwit/internal/rundir"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

const (
	// newGuestInterval is how often events looks for guests that were started
	// in the meantime.
	newGuestInterval = 500 * time.Millisecond
	// startingInterval is how often it looks whether a guest serves its
	// control socket.
	startingInterval = 50 * time.Millisecond
	// endingTime is how long a guest whose events have ended may take to end.
	endingTime = 2 * time.Second
)

func newEvents() *cobra.Command {
	asJSON, since := false, time.Duration(0)
	c := &cobra.Command{
		Use:   "events [NAME...]",
		Short: "Show what happens to guests, as it happens",
		Long: `Show when guests are paused, resumed, reboot, panic, end and so on, as it happens,
until they are gone or Ctrl-C. Without names those of all guests are shown, also of
guests that are started meanwhile. A guest keeps its last 256 events: --since shows
those of before.`,
		Example: `  godwit events
  godwit events web --since 1h
  godwit events --json | jq -r 'select(.type == "panicked").name'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			f := &follower{w: cmd.OutOrStdout(), print: printEvent, since: ""}
			if asJSON {
				f.print = printEventJSON
			}
			if since > 0 {
				f.since = time.Now().Add(-since).UTC().Format(time.RFC3339Nano)
			}
			err := f.follow(ctx, args)
			if errors.Is(err, errNoGuests) {
				fmt.Fprintln(cmd.ErrOrStderr(), "godwit: no guest runs")
				return nil
			}
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON object a line")
	c.Flags().DurationVar(&since, "since", 0, "begin with what happened in this time before, such as 10m")
	return c
}

// follower prints the events of guests.
type follower struct {
	since string // as the API has it
	print func(io.Writer, events.Event) error

	mu sync.Mutex // over what follows
	w  io.Writer
}

// errNoGuests says that there is nothing to follow.
var errNoGuests = errors.New("no guest runs")

// follow follows the guests of these names, or all if there are none, until they
// are gone or ctx ends, neither of which is an error.
func (f *follower) follow(ctx context.Context, names []string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var err error
	if len(names) == 0 {
		err = f.all(ctx, cancel)
	} else {
		err = f.named(ctx, cancel, names)
	}
	if cause := context.Cause(ctx); err == nil && cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	return err
}

func (f *follower) named(ctx context.Context, fail context.CancelCauseFunc, names []string) error {
	names = slices.Clone(names)
	slices.Sort(names)
	var vms []*rundir.VM
	var err error
	for _, name := range slices.Compact(names) {
		var vm *rundir.VM
		if vm, _, err = openGuest(name); err != nil {
			fail(nil)
			break
		}
		vms = append(vms, vm)
	}
	var following sync.WaitGroup
	for _, vm := range vms {
		following.Go(func() { f.one(ctx, fail, vm, f.since) })
	}
	following.Wait()
	return err
}

// all follows all guests, and those that are started meanwhile from their start.
func (f *follower) all(ctx context.Context, fail context.CancelCauseFunc) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ended := make(chan struct{})
	one := func(vm *rundir.VM, since string) {
		f.one(ctx, fail, vm, since)
		select {
		case ended <- struct{}{}:
		case <-ctx.Done():
		}
	}
	var followed []rundir.Info // of the guests that run
	active, since := 0, f.since
	for {
		vms, now, err := newGuests(followed)
		switch {
		case err != nil:
			fail(err)
			return err
		case len(now) == 0 && followed == nil:
			return errNoGuests
		}
		from := since
		for _, vm := range vms {
			wg.Go(func() { one(vm, from) })
		}
		if active += len(vms); active == 0 {
			return nil
		}
		followed, since = now, "0"
		select {
		case <-ended:
			active--
		case <-time.After(newGuestInterval):
		case <-ctx.Done():
			return nil
		}
	}
}

// newGuests lists the guests that run, and opens those that are not among the
// known ones.
func newGuests(known []rundir.Info) (opened []*rundir.VM, all []rundir.Info, _ error) {
	vms, err := rundir.List()
	all = make([]rundir.Info, 0, len(vms))
	for _, vm := range vms {
		all = append(all, vm.Info)
		if err != nil || slices.ContainsFunc(known, sameGuest(vm.Info)) {
			_ = vm.Close()
			continue
		}
		opened = append(opened, vm)
	}
	return opened, all, err
}

// sameGuest tells of the entries of guests whether they are of this one: names and
// numbers of processes come again.
func sameGuest(a rundir.Info) func(rundir.Info) bool {
	return func(b rundir.Info) bool { return a.Name == b.Name && a.PID == b.PID && a.Started.Equal(b.Started) }
}

// one follows a guest, which it closes, until that is gone.
func (f *follower) one(ctx context.Context, fail context.CancelCauseFunc, vm *rundir.VM, since string) {
	defer vm.Close()
	last := events.Event{Name: vm.Name}
	c := client.New(vm.Path(rundir.APIFile))
	for {
		err := c.Events(ctx, since, func(e events.Event) error {
			last = e
			return f.show(e)
		})
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, client.ErrNobody) && !ends(ctx, vm, startingInterval):
			continue // it does not serve its socket yet
		case err != nil && !errors.Is(err, client.ErrNobody):
			fail(fmt.Errorf("guest %s: %w", vm.Name, err))
			return
		case last.Type != events.Ended && ends(ctx, vm, endingTime):
			err = f.show(events.Event{
				Seq: last.Seq, Time: time.Now().UTC(), Type: events.Gone, Name: vm.Name,
				Message: fmt.Sprintf("process %d has ended without a word", vm.PID),
			})
		}
		if err != nil && !errors.Is(err, client.ErrNobody) {
			fail(err)
		}
		return
	}
}

// ends tells whether a guest ends within so much time.
func ends(ctx context.Context, vm *rundir.VM, within time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return vm.WaitEnd(ctx) == nil
}

func (f *follower) show(e events.Event) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.print(f.w, e)
}

func printEventJSON(w io.Writer, e events.Event) error { return json.NewEncoder(w).Encode(e) }

// printEvent prints an event as a line for people. Parts of it may come from the
// guest.
func printEvent(w io.Writer, e events.Event) error {
	line := fmt.Sprintf("%s  %s  %s", e.Time.Local().Format("2006-01-02 15:04:05.000"), e.Name, e.Type)
	if e.Device != "" {
		line += "  " + e.Device
	}
	switch {
	case e.Type == events.Dropped:
		line += fmt.Sprintf("  %d events were lost here", e.Count)
	case e.Message != "":
		line += "  " + e.Message
	}
	_, err := fmt.Fprintln(w, printable(line))
	return err
}
