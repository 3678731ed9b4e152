package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/godwit-vmm/godwit/guest/agent"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

func newCp() *cobra.Command {
	var o agent.CopyOptions
	var quiet bool
	c := &cobra.Command{
		Use:   "cp [flags] SRC DST",
		Short: "Copy files and folders into or out of a running guest",
		Long: `Copy a file or a folder with all that is in it. One of SRC and DST is NAME:PATH,
a path of the guest NAME, the other a path here; one here that has a colon in it
begins with ./ or /.

If DST is a folder the copy goes into it, else the copy gets that name. SRC/.
means the contents of a folder. Permissions and times are kept, symbolic links
are copied as such, and what is neither a file nor a folder nor a link is left
out. Nothing of a guest gets outside of DST, or special permissions.`,
		Example: `  godwit cp app web:/usr/local/bin/
  godwit cp web:/var/log/. logs
  godwit cp site/. web:/srv/www`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return cp(cmd.Context(), args[0], args[1], o, quiet)
		},
	}
	f := c.Flags()
	f.BoolVarP(&o.Follow, "follow-link", "L", false, "follow SRC if it is a symbolic link")
	f.BoolVarP(&o.Owners, "archive", "a", false, "keep the numbers of users and groups")
	f.BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	return c
}

func cp(ctx context.Context, src, dst string, o agent.CopyOptions, quiet bool) error {
	from, srcPath, out := guestPath(src)
	to, dstPath, in := guestPath(dst)
	if in == out {
		return errors.New("one of SRC and DST must be NAME:PATH, and the other a path here")
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	client, err := connect(ctx, from+to) // one is empty
	if err != nil {
		return err
	}
	defer client.Close()
	shown := &progress{out: os.Stderr, start: time.Now()}
	if !quiet && term.IsTerminal(int(os.Stderr.Fd())) {
		o.Progress = shown.show
	}
	copyTree := client.Download
	if in {
		copyTree = client.Upload
		if o.Progress != nil {
			shown.total = agent.TreeSize(src)
		}
	}
	copied, err := copyTree(ctx, srcPath, dstPath, o)
	shown.clear()
	if errors.Is(err, context.Canceled) {
		return errors.New("interrupted; what was copied before is there")
	}
	if err == nil && copied.Skipped > 0 {
		fmt.Fprintf(os.Stderr, "godwit: %d devices, pipes and sockets were left out\n", copied.Skipped)
	}
	if err != nil {
		return lost(from+to, "the copy", err)
	}
	return nil
}

// guestPath takes NAME:PATH apart. For a path of this machine ok is false and
// path is that.
func guestPath(s string) (name, path string, ok bool) {
	name, path, ok = strings.Cut(s, ":")
	if !ok || name == "" || strings.ContainsRune(name, '/') || name[0] == '.' {
		return "", s, false
	}
	if path == "" {
		path = "."
	}
	return name, path, true
}

// progress shows how a copy goes on, in one line of a terminal.
type progress struct {
	out   io.Writer
	start time.Time
	total int64 // bytes, 0 if not known
	last  time.Time
	shown bool
}

// progressInterval is the time from one line to the next.
const progressInterval = 200 * time.Millisecond

func (p *progress) show(c agent.Copied) {
	now := time.Now()
	if now.Sub(p.last) < progressInterval || now.Sub(p.start) < progressInterval {
		return
	}
	p.last, p.shown = now, true
	rate := float64(c.Bytes) / now.Sub(p.start).Seconds()
	line := fmt.Sprintf("%d files, %s", c.Files, bytesText(float64(c.Bytes)))
	if p.total > 0 {
		line += fmt.Sprintf(" of %s (%d%%)", bytesText(float64(p.total)), min(c.Bytes*100/p.total, 100))
	}
	// To the start of the line, and nothing behind it.
	fmt.Fprintf(p.out, "\r%s, %s/s\x1b[K", line, bytesText(rate))
}

// clear takes the line away.
func (p *progress) clear() {
	if p.shown {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}

// bytesText is a number of bytes for people.
func bytesText(n float64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	i := 0
	for ; n >= 1024 && i < len(units)-1; i++ {
		n /= 1024
	}
	if i == 0 {
		return fmt.Sprintf("%.0f B", n)
	}
	return fmt.Sprintf("%.1f %s", n, units[i])
}
