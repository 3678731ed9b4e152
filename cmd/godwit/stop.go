package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/godwit-vmm/godwit/internal/api/client"
	"github.com/godwit-vmm/godwit/internal/rundir"
	"github.com/spf13/cobra"
)

// pressInterval is the time between two attempts to press a power button that is
// not there at the moment: the guest is just rebooting, say.
const pressInterval = 200 * time.Millisecond

func newStop() *cobra.Command {
	timeout := 30 * time.Second
	c := &cobra.Command{
		Use:   "stop NAME...",
		Short: "Shut guests down",
		Long: `Press the power buttons of guests and wait until they have shut down. A guest that
has not within --timeout is killed. One that is paused is resumed for it.`,
		Example: `  godwit stop web
  godwit stop web db --timeout 2m`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if timeout < 0 {
				return fmt.Errorf("--timeout %v: want a time such as 30s, or 0 to kill at once", timeout)
			}
			return stopGuests(cmd.Context(), cmd.OutOrStdout(), args, timeout)
		},
	}
	c.Flags().DurationVar(&timeout, "timeout", timeout, "how long a guest may take to shut down, such as 90s, before it is killed")
	return c
}

// stopGuests stops guests and says of each what was done, as soon as it is.
func stopGuests(ctx context.Context, w io.Writer, names []string, timeout time.Duration) error {
	var mu sync.Mutex
	return eachGuest(names, func(name string) error {
		vm, c, err := openGuest(name)
		if err != nil {
			return err
		}
		defer vm.Close()
		did, err := stopGuest(ctx, vm, c, timeout)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		_, err = fmt.Fprintf(w, "%s: %s\n", name, did)
		return err
	})
}

// stopGuest returns when the guest is gone, and says how that came.
func stopGuest(ctx context.Context, vm *rundir.VM, c *client.Client, timeout time.Duration) (did string, _ error) {
	start := time.Now()
	patient, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	pressed := make(chan error, 1)
	go func() {
		err := press(patient, c)
		if err != nil {
			cancel() // there is nothing to wait for
		}
		pressed <- err
	}()
	err := vm.WaitEnd(patient)
	cancel()
	pressErr := <-pressed
	switch {
	case err == nil:
		took, unit := time.Since(start), time.Millisecond
		if took > time.Second {
			unit *= 100
		}
		return fmt.Sprintf("shut down after %v", took.Round(unit)), nil
	case ctx.Err() != nil:
		return "", fmt.Errorf("guest %s still runs: %w", vm.Name, ctx.Err())
	case !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled):
		return "", err
	}
	if err := killGuest(ctx, vm); err != nil {
		return "", err
	}
	var why *client.Fault
	switch {
	case errors.Is(pressErr, errNotStarted):
		return "had not been started, and was killed", nil
	case errors.As(pressErr, &why):
		return fmt.Sprintf("could not be asked to shut down within %v (%v), and was killed", timeout, why), nil
	case pressErr != nil:
		return fmt.Sprintf("did not answer within %v, and was killed", timeout), nil
	}
	return fmt.Sprintf("did not shut down within %v, and was killed", timeout), nil
}

// errNotStarted says that there is no guest that could shut down.
var errNotStarted = errors.New("the guest was not started")

// press presses the power button, again until that succeeds or ctx ends.
func press(ctx context.Context, c *client.Client) error {
	for {
		err := pressOnce(ctx, c)
		if err == nil || errors.Is(err, errNotStarted) {
			return err
		}
		select {
		case <-time.After(pressInterval):
		case <-ctx.Done():
			return err
		}
	}
}

func pressOnce(ctx context.Context, c *client.Client) error {
	info, err := c.Info(ctx)
	if err == nil {
		switch info.State {
		case client.NotStarted:
			return errNotStarted
		case client.Paused:
			err = c.Resume(ctx)
		}
	}
	if err != nil {
		return err
	}
	return c.PowerButton(ctx)
}
