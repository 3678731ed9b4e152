package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/godwit-vmm/godwit/internal/api"
	"github.com/godwit-vmm/godwit/internal/api/client"
	"github.com/godwit-vmm/godwit/internal/rundir"
	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/live"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// resolveOptions are the flags of migration resolve.
type resolveOptions struct {
	runHere, giveUp, forget, yes bool
	fenced, at                   string
	tls                          tlsFlags
	in                           io.Reader
	out, messages                io.Writer
}

func newMigrationResolve() *cobra.Command {
	var o resolveOptions
	c := &cobra.Command{
		Use:   "resolve NAME",
		Short: "Find out or decide which host has a guest in doubt",
		Long: `Find out or decide which host has a guest that this host let go, and that the other
one has not answered for.

Without --run-here and --give-up the other host is asked until it answers. With TLS,
give the flags that the migration had. A guest whose process is still there is asked
for by that; here is only decided what it is to do.

--run-here has this host own the guest again. Should it run on the other host, too, its
disks are destroyed: say with --fenced how you made sure that it never does.
--give-up leaves the guest to the other host for good. A guest that moved with --postcopy,
and whose memory does not come any more, it ends.

--forget removes what the journal has of a guest whose migrations are over, so that
another guest can have its name. Do so on both hosts.`,
		Example: `  godwit migration resolve web
  godwit migration resolve web --run-here --fenced "host2 is switched off, its disk path removed"
  godwit migration resolve web --give-up
  godwit migration resolve web --forget`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.in, o.out, o.messages = os.Stdin, cmd.OutOrStdout(), cmd.ErrOrStderr()
			if err := o.check(); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			return o.resolve(ctx, args[0])
		},
	}
	o.tls.add(c)
	f := c.Flags()
	f.BoolVar(&o.runHere, "run-here", false, "have this host own the guest again; needs --fenced")
	f.StringVar(&o.fenced, "fenced", "", "`HOW` you made sure that the guest never runs on the other host; it is noted in the journal")
	f.BoolVar(&o.giveUp, "give-up", false, "leave the guest to the other host for good")
	f.BoolVar(&o.forget, "forget", false, "remove what is known of a guest whose migrations are over")
	f.BoolVarP(&o.yes, "yes", "y", false, "do not ask before --forget")
	f.StringVar(&o.at, "at", "", "ask the other host at `ADDR` (default: where it was)")
	return c
}

func (o *resolveOptions) check() error {
	orders := 0
	for _, set := range []bool{o.runHere, o.giveUp, o.forget} {
		if set {
			orders++
		}
	}
	switch {
	case orders > 1:
		return errors.New("--run-here, --give-up and --forget exclude each other")
	case o.runHere && o.fenced == "":
		return errors.New(`--run-here needs --fenced "HOW": how is the other host kept from ever running the guest?`)
	case o.fenced != "" && !o.runHere && !o.forget:
		return errors.New("--fenced is for --run-here and --forget")
	case len(o.fenced) > handover.MaxReason:
		return fmt.Errorf("--fenced: want at most %d bytes", handover.MaxReason)
	}
	return nil
}

// order is what the user has decided, false for nothing.
func (o *resolveOptions) order() (handover.Event, bool) {
	if o.runHere {
		return handover.Event{Kind: handover.ForceRun, Reason: o.fenced}, true
	}
	return handover.Event{Kind: handover.ForceGiveUp, Reason: "an operator gave it up"}, o.giveUp
}

func (o *resolveOptions) resolve(ctx context.Context, name string) error {
	if err := rundir.CheckName(name); err != nil {
		return err
	}
	journal, err := existingJournal()
	if err != nil {
		return err
	}
	if journal == nil {
		return fmt.Errorf("nothing is known here of a migration of guest %s", name)
	}
	vm, c, err := openGuest(name)
	if err == nil {
		defer vm.Close()
		return o.running(ctx, vm, c)
	}
	if o.forget {
		return o.forgetGuest(journal, name)
	}
	key, doubt, err := inDoubt(journal, name)
	if err != nil {
		return err
	}
	if !doubt {
		return o.notInDoubt(ctx, journal, name)
	}
	return o.ask(ctx, journal, key)
}

// inDoubt finds the record of a guest that was let go.
func inDoubt(journal *handover.Journal, name string) (handover.Key, bool, error) {
	open, err := journal.Unsettled()
	for _, r := range open {
		if r.VM == name && r.Role == handover.RoleSource {
			return r.Key(), true, err
		}
	}
	return handover.Key{}, false, err
}

// notInDoubt says what is known of a guest that there is nothing to decide about.
func (o *resolveOptions) notInDoubt(ctx context.Context, journal *handover.Journal, name string) error {
	rows, err := listMigrations(ctx, name)
	switch {
	case err != nil:
		return err
	case len(rows) == 0:
		return fmt.Errorf("nothing is known here of a migration of guest %s", name)
	case o.runHere || o.giveUp:
		return fmt.Errorf("guest %s is not in doubt: see godwit migration status %s", name, name)
	}
	if err := printMigrations(o.out, rows); err != nil {
		return err
	}
	if errors.Is(journal.MayStart(name), handover.ErrInDoubt) {
		return fmt.Errorf("guest %s is in doubt until its record is removed", name)
	}
	return nil
}

// ask asks the other host for a guest whose process has ended.
func (o *resolveOptions) ask(ctx context.Context, journal *handover.Journal, key handover.Key) error {
	config, err := o.tls.client()
	if err != nil {
		return err
	}
	orders := make(chan handover.Event, 1)
	if order, given := o.order(); given {
		orders <- order
	} else {
		fmt.Fprintf(o.messages, "godwit: asking for guest %s; Ctrl-C leaves it in doubt\n", key.VM)
	}
	state, err := live.Resolve(ctx, live.ResolveOptions{
		Journal: journal, Key: key, Addr: o.at, TLS: config, Orders: orders,
		Report: func(p handover.Phase, why string) {
			if why != "" {
				fmt.Fprintf(o.messages, "godwit: %s: %s: %s\n", key.VM, p, printable(why))
			}
		},
	})
	switch {
	case errors.Is(err, live.ErrInDoubt):
		return fmt.Errorf("guest %s is still in doubt: see godwit migration status %s", key.VM, key.VM)
	case errors.Is(err, handover.ErrBusy):
		return fmt.Errorf("guest %s: %w: see godwit migration status %s", key.VM, err, key.VM)
	case err != nil:
		return err
	case state == handover.SourceGone:
		_, err = fmt.Fprintf(o.out, "%s is the other host's\n", key.VM)
		return err
	}
	_, err = fmt.Fprintf(o.out, "%s is this host's again; its process has ended: start it from its disks (godwit boot --name %s) or a snapshot (godwit restore)\n", key.VM, key.VM)
	return err
}

// running tells the process of a guest what to do.
func (o *resolveOptions) running(ctx context.Context, vm *rundir.VM, c *client.Client) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s, err := lastMigration(ctx, c)
	if err != nil {
		return explain(vm.Name, err)
	}
	g := &movingGuest{vm.Info, s}
	order, given := o.order()
	switch {
	case s.Missing != nil || g.sendsMemory():
		return o.memory(ctx, vm, c)
	case !g.moves():
		return fmt.Errorf("guest %s runs here, and is not in doubt", vm.Name)
	case !g.letGo():
		return fmt.Errorf("guest %s is moving, and still runs here: to call that off: godwit migration cancel %s", vm.Name, vm.Name)
	case o.forget || !given:
		rows, err := listMigrations(ctx, vm.Name)
		return errors.Join(err, printMigrations(o.out, rows), fmt.Errorf("guest %s is in doubt", vm.Name))
	}
	u := api.MigrationUpdate{Action: "give-up", Statement: order.Reason}
	if o.runHere {
		u.Action = "run-here"
	}
	if err := c.Do(ctx, "PATCH", "/migration", u, nil); err != nil {
		return explain(vm.Name, err)
	}
	return o.awaitOrder(ctx, vm, c)
}

// memory is running for a guest that runs at its destination before all of its memory is
// there, at either host.
func (o *resolveOptions) memory(ctx context.Context, vm *rundir.VM, c *client.Client) error {
	switch {
	case o.runHere:
		return fmt.Errorf("guest %s is not in doubt: it runs where it went to", vm.Name)
	case !o.giveUp:
		rows, err := listMigrations(ctx, vm.Name)
		return errors.Join(err, printMigrations(o.out, rows), fmt.Errorf("guest %s has not got all of its memory yet", vm.Name))
	}
	if err := c.Do(ctx, "PATCH", "/migration", api.MigrationUpdate{Action: "give-up"}, nil); err != nil {
		return explain(vm.Name, err)
	}
	if err := vm.WaitEnd(ctx); err != nil {
		return explain(vm.Name, err)
	}
	_, err := fmt.Fprintf(o.out, "%s was ended: the rest of its memory is given up\n", vm.Name)
	return err
}

// orderInterval is how often a guest's process is asked what became of an order.
const orderInterval = 50 * time.Millisecond

// awaitOrder waits until the process of a guest has done what it was told.
func (o *resolveOptions) awaitOrder(ctx context.Context, vm *rundir.VM, c *client.Client) error {
	for {
		s, err := lastMigration(ctx, c)
		g := movingGuest{vm.Info, s}
		switch {
		case err == nil && !g.moves() && o.runHere:
			_, err = fmt.Fprintf(o.out, "%s is this host's, and runs here\n", vm.Name)
			return err
		case (err == nil && !g.moves() || ends(ctx, vm, orderInterval)) && o.giveUp:
			_, err = fmt.Fprintf(o.out, "%s is the other host's\n", vm.Name)
			return err
		case ctx.Err() != nil && g.Progress != nil:
			return fmt.Errorf("guest %s is %s: %s", vm.Name, g.Progress.Phase, g.Progress.Reason)
		case ctx.Err() != nil:
			return explain(vm.Name, context.DeadlineExceeded)
		case err != nil && ends(ctx, vm, orderInterval):
			return fmt.Errorf("the process of guest %s has ended: see godwit migration status %s", vm.Name, vm.Name)
		}
		select {
		case <-time.After(orderInterval):
		case <-ctx.Done():
		}
	}
}

// forgetGuest removes the records of a guest whose migrations are over.
func (o *resolveOptions) forgetGuest(journal *handover.Journal, name string) error {
	all, err := journal.List()
	if err != nil {
		return err
	}
	open, err := journal.Unsettled()
	if err != nil {
		return err
	}
	for _, r := range open {
		if r.VM != name {
			continue
		}
		switch {
		case r.Role == handover.RoleSource:
			return fmt.Errorf("guest %s is in doubt: decide that first: godwit migration resolve %s", name, name)
		case r.State == handover.StateOwner && o.fenced == "":
			return fmt.Errorf("guest %s came from %s, which may not know yet, and would take it back if this were forgotten: "+
				`let it ask while godwit receive runs here, or, if it can never run the guest again, say --fenced "why it cannot"`, name, r.Peer)
		}
	}
	var keys []handover.Key
	for _, f := range all {
		if f.VM == name {
			keys = append(keys, f.Key)
		}
	}
	if len(keys) == 0 {
		return fmt.Errorf("nothing is known here of a migration of guest %s", name)
	}
	if err := o.confirm(fmt.Sprintf("forget that guest %s has moved, so that one of this name can be started here?", name)); err != nil {
		return err
	}
	for _, k := range keys {
		if err := removeRecord(journal, k); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(o.out, "forgot %d migrations of %s\n", len(keys), name)
	return err
}

func removeRecord(journal *handover.Journal, k handover.Key) error {
	slot, err := journal.Acquire(k)
	if err != nil {
		return err
	}
	return errors.Join(slot.Remove(), slot.Close())
}

// confirm asks the user, and returns an error for anything but a yes.
func (o *resolveOptions) confirm(question string) error {
	if o.yes {
		return nil
	}
	if f, ok := o.in.(*os.File); ok && !term.IsTerminal(int(f.Fd())) {
		return errors.New("nobody can be asked here: " + question + " Say --yes")
	}
	fmt.Fprintf(o.messages, "godwit: %s Type yes: ", question)
	line, _ := bufio.NewReader(io.LimitReader(o.in, 80)).ReadString('\n')
	if line != "yes\n" {
		return errors.New("nothing was changed")
	}
	return nil
}
