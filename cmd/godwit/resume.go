package main

import (
	"context"

	"github.com/godwit-vmm/godwit/internal/api/client"
	"github.com/spf13/cobra"
)

func newResume() *cobra.Command {
	return &cobra.Command{
		Use:   "resume NAME...",
		Short: "Let guests that are paused go on",
		Long:  `Let guests go on that were stopped by "godwit pause", or restored as paused.`,
		Example: `  godwit resume web
  godwit resume web db`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return eachGuest(args, func(name string) error {
				return askGuest(cmd.Context(), name, func(ctx context.Context, c *client.Client) error { return c.Resume(ctx) })
			})
		},
	}
}
