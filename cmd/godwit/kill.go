package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/godwit-vmm/godwit/internal/rundir"
	"github.com/spf13/cobra"
)

// killTimeout is how long a process that was killed may take to be gone: one that
// the host's kernel keeps in a call ends only after that.
const killTimeout = 10 * time.Second

func newKill() *cobra.Command {
	return &cobra.Command{
		Use:   "kill NAME...",
		Short: "End guests at once",
		Long: `Kill the processes that run guests, and remove what they leave. It is as if
somebody pulled the plug: a guest has no time to write to its disks. "godwit stop"
asks the guest first.`,
		Example: `  godwit kill web
  godwit kill web db`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return eachGuest(args, func(name string) error {
				vm, _, err := openGuest(name)
				if err != nil {
					return err
				}
				defer vm.Close()
				return killGuest(cmd.Context(), vm)
			})
		},
	}
}

// killGuest returns when the process of the guest is gone.
func killGuest(ctx context.Context, vm *rundir.VM) error {
	// One that has ended of its own is as good.
	if err := vm.Kill(); err != nil && !errors.Is(err, rundir.ErrNotRunning) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	err := vm.WaitEnd(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("guest %s was killed, but process %d is not gone after %v: does it wait for a disk of the host?", vm.Name, vm.PID, killTimeout)
	}
	return err
}
