package main

import (
	"github.com/godwit-vmm/godwit/internal/bench"
	"github.com/spf13/cobra"
)

// newReceiveCopy is for the benchmarks of migration, which start it as a process of its
// own.
func newReceiveCopy() *cobra.Command {
	var o bench.CopyOptions
	var t tlsFlags
	c := &cobra.Command{
		Use:    "receive-copy",
		Short:  "Take memory over TCP: the floor of a migration",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Cert, o.Key, o.CA = t.cert, t.key, t.ca
			return bench.ReceiveCopy(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	t.add(c)
	f := c.Flags()
	f.Uint64Var(&o.Size, "size", 0, "how much comes, in bytes")
	f.IntVar(&o.Connections, "connections", 1, "over how many connections")
	f.BoolVar(&o.Fresh, "fresh", false, "have it come into memory that was never used")
	return c
}

// newServePages is like newReceiveCopy for post-copy.
func newServePages() *cobra.Command {
	return &cobra.Command{
		Use:    "serve-pages",
		Short:  "Answer questions with pages over TCP: the floor of post-copy",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(cmd *cobra.Command, _ []string) error { return bench.ServePages(cmd.OutOrStdout()) },
	}
}
