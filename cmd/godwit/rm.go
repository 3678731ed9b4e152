package main

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/godwit-vmm/godwit/internal/rundir"
	"github.com/spf13/cobra"
)

func newRm() *cobra.Command {
	return &cobra.Command{
		Use:   "rm NAME...",
		Short: "Remove what killed guests have left",
		Long: `Remove the folders of guests whose processes were killed: sockets and logs. There
is no need to: "godwit ps" does so too, and a guest may take the name of one that
was killed. A guest that runs is refused.`,
		Example: `  godwit rm web
  godwit stop web db; godwit rm web db`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return eachGuest(args, func(name string) error {
				err := rundir.Remove(name)
				switch {
				case errors.Is(err, rundir.ErrRunning):
					return fmt.Errorf("guest %s runs: stop it with: godwit stop %s", name, name)
				case errors.Is(err, fs.ErrNotExist):
					return fmt.Errorf("there is nothing of a guest %s: godwit ps lists those that run", name)
				}
				return err
			})
		},
	}
}
