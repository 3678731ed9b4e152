package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/godwit-vmm/godwit/internal/api"
	"github.com/godwit-vmm/godwit/migrate"
	"github.com/godwit-vmm/godwit/migrate/snapshot"
	"github.com/spf13/cobra"
)

func newSnapshot() *cobra.Command {
	request := api.SnapshotCreate{Type: "Full", Report: true, Live: true}
	var diff string
	var asJSON bool
	c := &cobra.Command{
		Use:   "snapshot NAME DIR",
		Short: "Save a running guest to a folder",
		Long: `Save all of a running guest, its memory, processors and devices, to a folder, from
which "godwit restore" makes it go on, on this host or another.

The guest runs on meanwhile and pauses for some milliseconds at the end. Its disks
are not part of the snapshot: they are to be as they were when it is restored. With
--stop the guest ends with the snapshot, so that they stay so; with --with-disks
copies of them are in the snapshot.

A folder that is there is a whole snapshot: one that fails, for want of space or by
a crash, leaves none.`,
		Example: `  godwit snapshot web /var/snap/web              the guest runs on
  godwit snapshot web /var/snap/web --stop       the guest ends: restore it later
  godwit snapshot web base --track && godwit snapshot web later --diff base`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			// The other process has its own working directory.
			if request.Path, err = filepath.Abs(args[1]); err != nil {
				return err
			}
			if diff != "" {
				request.Type = "Diff"
				if request.Base, err = filepath.Abs(diff); err != nil {
					return err
				}
			}
			return takeSnapshot(cmd.Context(), cmd.OutOrStdout(), args[0], request, asJSON)
		},
	}
	f := c.Flags()
	f.StringVar(&diff, "diff", "", "save only what changed since the snapshot `BASE`, the last one of this guest, taken with --track or as a diff itself")
	f.BoolVar(&request.Track, "track", false, "keep track of what the guest writes from now on, for a --diff; costs the guest some speed")
	f.BoolVar(&request.WithDisks, "with-disks", false, "put copies of the disks into the snapshot; the guest is paused while they are made, unless the file system can share the blocks")
	f.BoolVar(&request.Stop, "stop", false, "end the guest with the snapshot")
	f.BoolVar(&asJSON, "json", false, "print the report as JSON")
	c.AddCommand(newSnapshotInfo(), newSnapshotVerify(), newSnapshotMerge())
	return c
}

func takeSnapshot(ctx context.Context, stdout io.Writer, name string, request api.SnapshotCreate, asJSON bool) error {
	vm, c, err := openGuest(name)
	if err != nil {
		return err
	}
	defer vm.Close()
	var r migrate.Report
	if err := c.Do(ctx, "PUT", "/snapshot/create", request, &r); err != nil {
		return explain(name, err)
	}
	if asJSON {
		return json.NewEncoder(stdout).Encode(r)
	}
	_, err = fmt.Fprintf(stdout, "%s: %s copied in %v, the guest paused for %v\n",
		request.Path, size(r.Bytes), r.Total.Round(time.Millisecond), r.Pause.Round(10*time.Microsecond))
	return err
}

// size is a number of bytes for people.
func size(n uint64) string {
	for _, unit := range []struct {
		name string
		size uint64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= unit.size {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(unit.size), unit.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

func newSnapshotInfo() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "info DIR",
		Short:   "Show what a snapshot is of",
		Example: "  godwit snapshot info /var/snap/web\n  godwit snapshot info --json /var/snap/web | jq .cpu_features",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := snapshot.Open(args[0])
			if err != nil {
				return err
			}
			defer s.Close()
			if asJSON {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(s.Manifest())
			}
			return showManifest(cmd.OutOrStdout(), s.Manifest())
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print the manifest as JSON")
	return c
}

func showManifest(w io.Writer, m *snapshot.Manifest) error {
	var b strings.Builder
	fmt.Fprintf(&b, "guest      %s, %d CPUs, %s of memory\n", m.Name, m.CPUs, size(m.Memory.Size))
	fmt.Fprintf(&b, "taken      %s by godwit %s\n", m.Created.Format(time.RFC3339), m.Godwit)
	fmt.Fprintf(&b, "kind       %s, format %v, ID %s\n", m.Kind, m.Format, m.ID)
	if m.Base != nil {
		fmt.Fprintf(&b, "base       %s, ID %s\n", m.Base.Path, m.Base.ID)
	}
	for _, d := range m.Devices {
		fmt.Fprintf(&b, "device %-3s %s\n", d.ID, d.Type)
	}
	for _, d := range m.Disks {
		where := "not in the snapshot"
		if d.File != "" {
			where = "copy in " + d.File
		}
		fmt.Fprintf(&b, "disk %-5s %s, %s, %s\n", d.ID, d.Path, size(d.Size), where)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func newSnapshotVerify() *cobra.Command {
	return &cobra.Command{
		Use:     "verify DIR...",
		Short:   "Check every checksum of snapshots and of those that they build upon",
		Example: "  godwit snapshot verify /var/snap/*",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var errs []error
			for _, dir := range args {
				err := snapshot.Verify(cmd.Context(), dir, nil)
				if err == nil {
					_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: good\n", dir)
				}
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		},
	}
}

func newSnapshotMerge() *cobra.Command {
	return &cobra.Command{
		Use:   "merge DIR OUT",
		Short: "Make one full snapshot of a diff and all that it builds upon",
		Long: `Make one full snapshot of a diff and all that it builds upon. These stay as they
are. Later diffs on DIR may name OUT as their base.`,
		Example: "  godwit snapshot merge diff3 full && rm -r base diff1 diff2 diff3",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return snapshot.Merge(cmd.Context(), args[0], args[1], nil)
		},
	}
}
