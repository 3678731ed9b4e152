package main

import (
	"context"

	"github.com/godwit-vmm/godwit/internal/api/client"
	"github.com/spf13/cobra"
)

func newPause() *cobra.Command {
	return &cobra.Command{
		Use:   "pause NAME...",
		Short: "Pause running guests",
		Long: `Stop the processors and devices of guests between two instructions, until
"godwit resume". A guest that is paused uses no processor time, and keeps its
memory.`,
		Example: `  godwit pause web
  godwit pause web db && godwit resume web db`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return eachGuest(args, func(name string) error {
				return askGuest(cmd.Context(), name, func(ctx context.Context, c *client.Client) error { return c.Pause(ctx) })
			})
		},
	}
}
