package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/godwit-vmm/godwit/guest"
	"github.com/godwit-vmm/godwit/internal/bench"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func newBench() *cobra.Command {
	var o bench.Options
	var jsonFile string
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure godwit against a floor and its peers",
		Long: `Measure godwit against the floor (a small C program that does only what KVM
itself demands) and its peers, in turn in one run, and print a table of medians
with their spread.

` + benchList(),
		Example: `  godwit bench --quick
  godwit bench --only start,pio --json report.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if term.IsTerminal(int(os.Stderr.Fd())) {
				o.Progress = os.Stderr
			}
			if o.Kernel == "" {
				if k, err := guest.CachedKernel(); err == nil {
					o.Kernel = k.Path
				}
			}
			report, err := bench.Run(cmd.Context(), o)
			if err != nil {
				return err
			}
			err = report.WriteTable(cmd.OutOrStdout())
			if jsonFile != "" {
				err = errors.Join(err, report.WriteFile(jsonFile))
			}
			if failed := report.Failed(); err == nil && len(failed) > 0 {
				err = fmt.Errorf("benchmarks that failed: %s", strings.Join(failed, ", "))
			}
			return err
		},
	}
	f := c.Flags()
	f.StringSliceVar(&o.Only, "only", nil, "run only these benchmarks, a comma-separated `LIST`")
	f.BoolVar(&o.Quick, "quick", false, "fewer rounds: rough figures in little time")
	f.StringVar(&jsonFile, "json", "", "write the report with all samples to `FILE`")
	f.StringVar(&o.Kernel, "kernel", "", "kernel `FILE` for the benchmarks that boot Linux (default: the cached one)")
	f.StringVar(&o.Initrd, "initrd", "", "initrd `FILE` for the benchmarks that boot Linux (default: a small one)")
	c.AddCommand(newReceiveCopy(), newServePages())
	return c
}

func benchList() string {
	var b strings.Builder
	b.WriteString("Benchmarks:\n")
	for _, c := range bench.Cases() {
		fmt.Fprintf(&b, "  %-12s %s", c.Name, c.What)
		if c.Explicit {
			b.WriteString(" (only with --only)")
		}
		b.WriteByte('\n')
	}
	return b.String()
}
