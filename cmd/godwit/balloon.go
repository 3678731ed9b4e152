package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/godwit-vmm/godwit/devices/virtio/balloon"
	"github.com/godwit-vmm/godwit/internal/api"
	"github.com/godwit-vmm/godwit/internal/api/client"
	"github.com/godwit-vmm/godwit/internal/flags"
	"github.com/spf13/cobra"
)

func newBalloon() *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "balloon NAME [SIZE]",
		Short: "Take memory from a running guest, or give it back",
		Long: `Ask a running guest to give up so much of its memory, all in all, or say how
much it has given up. What it gives up is the host's again until the balloon is
made smaller. The guest decides: one that has less to spare gives up less.

The guest must have been booted with --balloon.`,
		Example: `  godwit boot --name web --memory 2G --balloon 0 --wait
  godwit balloon web 1G      take 1 GiB
  godwit balloon web         how far has it come?
  godwit balloon web 0       give it back`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				var s balloon.Stats
				if err := askGuest(cmd.Context(), args[0], func(ctx context.Context, c *client.Client) error {
					return c.Do(ctx, "GET", "/balloon/statistics", nil, &s)
				}); err != nil {
					return err
				}
				return printBalloon(cmd.OutOrStdout(), s, asJSON)
			}
			var size flags.Size
			if err := size.Set(args[1]); err != nil {
				return err
			}
			return askGuest(cmd.Context(), args[0], func(ctx context.Context, c *client.Client) error {
				return c.Do(ctx, "PATCH", "/balloon", api.BalloonUpdate{AmountMiB: uint64(size) >> 20}, nil)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print the statistics as JSON")
	return c
}

func printBalloon(w io.Writer, s balloon.Stats, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(s)
	}
	_, err := fmt.Fprintf(w, "given up %d MiB of %d MiB asked for; free pages reported so far: %d MiB\n",
		s.ActualMiB, s.TargetMiB, s.Reported>>20)
	return err
}
