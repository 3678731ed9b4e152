package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"time"

	"github.com/godwit-vmm/godwit/internal/rundir"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

const (
	// appearTime is how long wait waits for a guest that is just being
	// started beside it, and appearInterval how often it looks.
	appearTime     = 2 * time.Second
	appearInterval = 20 * time.Millisecond
)

func newWait() *cobra.Command {
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "wait NAME",
		Short: "Wait until a guest is up",
		Long: `Wait until the agent in a guest says that the guest is up, so that exec and cp
work. It is an error if the guest ends before that, or if there is none of this
name within two seconds.`,
		Example: `  godwit boot --name web --root web.img & godwit wait web --timeout 1m`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			return wait(ctx, args[0], timeout)
		},
	}
	c.Flags().DurationVar(&timeout, "timeout", 0, "how long to wait, such as 90s (default: for ever)")
	return c
}

func wait(ctx context.Context, name string, timeout time.Duration) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	vm, err := appear(ctx, name)
	if err == nil {
		err = errors.Join(vm.WaitUp(ctx), vm.Close())
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("guest %s was not up within %v", name, timeout)
	case errors.Is(err, context.Canceled):
		return errors.New("interrupted")
	}
	return err
}

// appear finds a guest, also one that is just being started.
func appear(ctx context.Context, name string) (*rundir.VM, error) {
	deadline := time.Now().Add(appearTime)
	for {
		vm, err := rundir.Open(name)
		if !errors.Is(err, rundir.ErrNotRunning) || time.Now().After(deadline) {
			return vm, err
		}
		select {
		case <-time.After(appearInterval):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
