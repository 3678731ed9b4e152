package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"

	"github.com/godwit-vmm/godwit/internal/doctor"
	"github.com/spf13/cobra"
)

func newDoctor() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this host can do for guests, and what to do about the rest",
		Long: `Look at what guests need of this host: KVM and its capabilities, hardware
virtualization, huge pages, tun, userfaultfd, a guest kernel.

Exit status: 0 if Linux guests can boot here, 1 if not.`,
		Example: `  godwit doctor
  godwit doctor --json | jq '.[] | select(.verdict != "ok")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			findings := doctor.Examine(doctor.Host{})
			out := cmd.OutOrStdout()
			var err error
			if asJSON {
				e := json.NewEncoder(out)
				e.SetIndent("", "  ")
				err = e.Encode(findings)
			} else {
				w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
				for _, f := range findings {
					fmt.Fprintf(w, "%s\t%s\t%s\n", f.Verdict, f.Name, f.Found)
					if f.Advice != "" {
						fmt.Fprintf(w, "\t\t-> %s\n", f.Advice)
					}
				}
				err = w.Flush()
			}
			if err != nil {
				return err
			}
			if !doctor.CanBoot(findings) {
				return exitStatus(1)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
