package main

import (
	"encoding/json"
	"fmt"
	"runtime"

	"github.com/godwit-vmm/godwit/internal/version"
	"github.com/spf13/cobra"
)

func newVersion() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the version of godwit",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{
					"version": version.String(),
					"go":      runtime.Version(),
				})
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "godwit %s (%s)\n", version.String(), runtime.Version())
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
