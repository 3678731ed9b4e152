package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// maxClones bounds how many guests one command makes.
const maxClones = 10_000

func newClone() *cobra.Command {
	o := cloneOptions{count: 1}
	c := &cobra.Command{
		Use:   "clone DIR",
		Short: "Make many guests of one saved guest",
		Long: `Restore a snapshot several times at once, in the background. The guests share the
snapshot's memory until they write to it. Each has a name, a generation ID, MAC
addresses and random numbers of its own, and writes to its own overlays of the
disks.

Prints the names of the guests. If one cannot be made, those that were made are
left, and named.`,
		Example: `  godwit clone /var/snap/web --count 10 --wait
  godwit clone /var/snap/web --count 3 --name worker --overlay /images
  godwit clone /var/snap/web --ephemeral | xargs godwit stop`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.count < 1 || o.count > maxClones {
				return fmt.Errorf("--count %d: want 1 to %d", o.count, maxClones)
			}
			if o.overlay == "" {
				o.ephemeral = true
			}
			var err error
			if o.dir, err = filepath.Abs(args[0]); err != nil {
				return err
			}
			if o.name == "" {
				if o.name, err = savedName(o.dir); err != nil {
					return err
				}
			}
			return clone(cmd.Context(), &o, cmd.OutOrStdout())
		},
	}
	f := c.Flags()
	f.IntVar(&o.count, "count", o.count, "how many guests to make")
	f.StringVar(&o.name, "name", "", "the guests are called `NAME`-1, NAME-2 and so on (default: that of the saved one)")
	f.StringVar(&o.overlay, "overlay", "", "keep what the guests write to their disks, in new overlays in `FOLDER` (default: forget it when they end)")
	f.BoolVar(&o.ephemeral, "ephemeral", false, "forget what the guests write to their disks when they end; --overlay is then where it is until then")
	f.BoolVar(&o.wait, "wait", false, "end when the agents of all guests answer")
	f.BoolVar(&o.paused, "paused", false, "leave the guests paused, until \"godwit resume\"")
	f.BoolVar(&o.allowSoftware, "allow-software-kvm", false, "go on where KVM emulates ring 0 (Linux does not run there)")
	f.BoolVar(&o.asJSON, "json", false, "print the names as a JSON array")
	return c
}

// cloneOptions are the flags of clone.
type cloneOptions struct {
	dir, name, overlay string
	count              int
	ephemeral, wait    bool
	paused             bool
	allowSoftware      bool
	asJSON             bool
}

// restoreArgs is the command line that makes the clone of a name.
func (o *cloneOptions) restoreArgs(name string) []string {
	args := []string{"restore", o.dir, "--name", name, "--new-mac"}
	for flag, set := range map[string]bool{
		"--ephemeral": o.ephemeral, "--paused": o.paused, "--allow-software-kvm": o.allowSoftware,
		"--wait": o.wait, "--detach": !o.wait,
	} {
		if set {
			args = append(args, flag)
		}
	}
	if o.overlay != "" {
		args = append(args, "--overlay", o.overlay)
	}
	return args
}

// clone makes the guests, each in a process of its own, as many at a time as there
// are processors.
func clone(ctx context.Context, o *cloneOptions, stdout io.Writer) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer stop()
	errs := make([]error, o.count)
	var wg sync.WaitGroup
	places := make(chan struct{}, runtime.NumCPU())
	for i := range o.count {
		wg.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			if errs[i] = ctx.Err(); errs[i] == nil {
				errs[i] = o.one(ctx, self, o.cloneName(i))
			}
		})
	}
	wg.Wait()
	names := make([]string, 0, o.count)
	for i, err := range errs {
		if err == nil {
			names = append(names, o.cloneName(i))
		}
	}
	if o.asJSON {
		err = json.NewEncoder(stdout).Encode(names)
	} else if len(names) > 0 {
		_, err = fmt.Fprintln(stdout, strings.Join(names, "\n"))
	}
	return errors.Join(append(errs, err)...)
}

func (o *cloneOptions) cloneName(i int) string { return fmt.Sprintf("%s-%d", o.name, i+1) }

// one makes one guest. The command says why it failed.
func (o *cloneOptions) one(ctx context.Context, self, name string) error {
	c := exec.CommandContext(ctx, self, o.restoreArgs(name)...)
	// It ends its guest and then itself.
	c.Cancel = func() error { return c.Process.Signal(unix.SIGTERM) }
	var said strings.Builder
	c.Stderr = &said
	if err := c.Run(); err != nil {
		if text := strings.TrimPrefix(strings.TrimSpace(said.String()), "godwit: "); text != "" {
			err = errors.New(text)
		}
		return fmt.Errorf("clone %s: %w", name, err)
	}
	return nil
}
