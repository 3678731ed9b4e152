package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

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
	f.DurationVar(&o.waitTimeout, "wait-timeout", 2*time.Minute, "end a guest that does not answer after this time with --wait; 0 waits for ever")
	f.BoolVar(&o.paused, "paused", false, "leave the guests paused, until \"godwit resume\"")
	f.BoolVar(&o.allowSoftware, "allow-software-kvm", false, "go on where KVM emulates ring 0 (Linux does not run there)")
	f.BoolVar(&o.asJSON, "json", false, "print the names as a JSON array")
	return c
}

// cloneOptions are the flags of clone.
type cloneOptions struct {
	dir, name, overlay string
	count              int
	waitTimeout        time.Duration
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
				errs[i] = o.one(ctx, o.cloneName(i))
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
	var err error
	if o.asJSON {
		err = json.NewEncoder(stdout).Encode(names)
	} else if len(names) > 0 {
		_, err = fmt.Fprintln(stdout, strings.Join(names, "\n"))
	}
	return errors.Join(append(errs, err)...)
}

func (o *cloneOptions) cloneName(i int) string { return fmt.Sprintf("%s-%d", o.name, i+1) }

// one makes one guest.
func (o *cloneOptions) one(ctx context.Context, name string) error {
	said, err := messageFile()
	if err != nil {
		return err
	}
	defer said.Close()
	_, err = (&launch{what: "the guest", args: o.restoreArgs(name), stderr: said, timeout: o.waitTimeout}).run(ctx)
	var status exitStatus
	if errors.As(err, &status) {
		text, _ := io.ReadAll(io.NewSectionReader(said, 0, maxMessage))
		if text := strings.TrimPrefix(strings.TrimSpace(string(text)), "godwit: "); text != "" {
			err = errors.New(text)
		}
	}
	if err != nil {
		return fmt.Errorf("clone %s: %w", name, err)
	}
	return nil
}

// maxMessage is how much is shown of what a process in the background has said, in bytes.
const maxMessage = 4 << 10

// messageFile is a file in memory for what a process in the background says until it is
// ready.
func messageFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("messages", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("a file for messages: %w", err)
	}
	return os.NewFile(uintptr(fd), "messages"), nil
}
