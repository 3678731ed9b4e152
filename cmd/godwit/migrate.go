package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/godwit-vmm/godwit/internal/api"
	"github.com/godwit-vmm/godwit/internal/flags"
	"github.com/godwit-vmm/godwit/migrate/live"
	"github.com/godwit-vmm/godwit/migrate/stream"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// tlsFlags are the flags about TLS of both sides of a migration.
type tlsFlags struct{ cert, key, ca string }

func (t *tlsFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&t.cert, "tls-cert", "", "this host's certificate, a PEM `FILE`; with it go the two others")
	f.StringVar(&t.key, "tls-key", "", "the key of the certificate, a PEM `FILE`")
	f.StringVar(&t.ca, "tls-ca", "", "the authority that the other host has to be certified by, a PEM `FILE`")
}

// absolute has the paths mean the same in another process.
func (t *tlsFlags) absolute() error {
	for _, path := range []*string{&t.cert, &t.key, &t.ca} {
		if *path == "" {
			continue
		}
		var err error
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	return nil
}

// client is the configuration of a host that a guest leaves, nil for none.
func (t *tlsFlags) client() (*tls.Config, error) {
	if *t == (tlsFlags{}) {
		return nil, nil
	}
	return stream.LoadTLS(t.cert, t.key, t.ca, false)
}

// server is that of a host that receives.
func (t *tlsFlags) server() (*tls.Config, error) {
	if *t == (tlsFlags{}) {
		return nil, nil
	}
	return stream.LoadTLS(t.cert, t.key, t.ca, true)
}

func newMigrate() *cobra.Command {
	var m api.Migration
	var t tlsFlags
	var bandwidth flags.Size
	downtime, timeout := 300*time.Millisecond, time.Duration(0)
	asJSON := false
	c := &cobra.Command{
		Use:   "migrate NAME ADDR",
		Short: "Move a running guest to another host",
		Long: `Move a running guest to another host, where "godwit receive" waits for it at ADDR,
which is HOST:PORT or unix:PATH.

The guest runs on while its memory is copied, and stands still for a moment at the end.
Whatever goes wrong before that, or Ctrl-C, leaves it where it is. Once this host has let
the guest go, only the other one decides: should that not answer, the guest is in doubt,
runs nowhere, and this command goes on asking; see "godwit migration".

To another godwit on this host, at unix:PATH, memory is passed as it is, and nothing is
copied: the guest stands still for milliseconds, and keeps its name and its network. So
a guest gets a newer godwit.

Disks have to be on storage that both hosts have, or move with the guest: --with-disks
copies those that it can write, to where the other host says (godwit receive --disk). The
other host checks everything before the first byte of memory moves, and says all that is
missing.

A guest that writes faster than its memory can be sent never gets to the end. It is slowed
down with --auto-converge; with --postcopy auto it runs on at the other host before all of
its memory is there, which then comes as it is needed. While it does, the guest needs both
hosts: should this one be lost, so is the guest.`,
		Example: `  godwit migrate web 10.0.0.2:7000 --tls-cert host1.pem --tls-key host1.key --tls-ca ca.pem
  godwit migrate web unix:/run/upgrade.sock              to another godwit on this host
  godwit migrate web 127.0.0.1:7000                      a receiver on this host, or through a tunnel
  godwit migrate web 10.0.0.2:7000 --bandwidth 50M --downtime 100ms --auto-converge
  godwit migrate web 10.0.0.2:7000 --with-disks --bandwidth 100M
  godwit migrate web 10.0.0.2:7000 --postcopy auto
  godwit migrate web 10.0.0.2:7000 --json | jq .report.downtime`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			m.Address, m.Bandwidth = args[1], uint64(bandwidth)
			if path, ok := strings.CutPrefix(m.Address, "unix:"); ok {
				// The guest's process dials, which may have been started elsewhere.
				path, err := filepath.Abs(path)
				if err != nil {
					return err
				}
				m.Address = "unix:" + path
			}
			m.Downtime, m.Timeout = downtime.Milliseconds(), timeout.Milliseconds()
			if downtime < time.Millisecond {
				return fmt.Errorf("--downtime %v: want a millisecond or more", downtime)
			}
			if err := t.absolute(); err != nil {
				return err
			}
			m.Cert, m.Key, m.CA = t.cert, t.key, t.ca
			return migrateGuest(cmd.Context(), cmd.OutOrStdout(), args[0], m, asJSON)
		},
	}
	t.add(c)
	f := c.Flags()
	f.IntVar(&m.Connections, "connections", live.DefaultConnections, "how many connections memory goes over, 1 to 32")
	f.Var(&bandwidth, "bandwidth", "the most that is sent in a second, such as 50M (default: no limit)")
	f.DurationVar(&downtime, "downtime", downtime, "how long the guest may stand still")
	f.DurationVar(&timeout, "timeout", 0, "give up when the guest could not be paused after this time (default: never)")
	f.StringVar(&m.Compress, "compress", "none", "compress memory on its way (none, zstd, auto)")
	f.BoolVar(&m.AutoConverge, "auto-converge", false, "slow the guest's processors down if they write faster than can be sent")
	f.StringVar(&m.PostCopy, "postcopy", "never", "run the guest there before all of its memory is: never, auto (if it writes faster than can be sent) or now (after one round, unless --downtime is enough for what is left)")
	f.BoolVar(&m.WithDisks, "with-disks", false, "move the disks, too, that the guest can write")
	f.BoolVar(&asJSON, "json", false, "print a JSON object a line: the progress, and at last the report or an error")
	return c
}

// migrateGuest has the process of a guest move it, and shows how that goes.
func migrateGuest(ctx context.Context, stdout io.Writer, name string, m api.Migration, asJSON bool) error {
	vm, c, err := openGuest(name)
	if err != nil {
		return err
	}
	defer vm.Close()
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer stop()
	show := &migrationView{name: name, to: m.Address}
	if !asJSON && term.IsTerminal(int(os.Stderr.Fd())) {
		show.bar = os.Stderr
	}
	// The guest's process ends the migration in order when this one goes away, but
	// only it knows how.
	defer context.AfterFunc(ctx, func() {
		_ = c.Do(context.WithoutCancel(ctx), "PATCH", "/migration", api.MigrationUpdate{Action: "cancel"}, nil)
	})()
	err = c.Lines(context.WithoutCancel(ctx), "PUT", "/migration", m, func(line []byte) error {
		if asJSON {
			if _, err := fmt.Fprintf(stdout, "%s\n", line); err != nil {
				return err
			}
		}
		var s api.MigrationStatus
		if err := json.Unmarshal(line, &s); err != nil {
			return err
		}
		show.take(s)
		return nil
	})
	show.clear()
	switch {
	case err != nil:
		return explain(name, err)
	case show.report != nil && !asJSON:
		return printMigration(stdout, name, m.Address, show.report)
	case show.report != nil:
		return nil
	case show.failure != "":
		return fmt.Errorf("guest %s: %s", name, show.failure)
	}
	return fmt.Errorf("guest %s: its process ended before it said how the migration went: see godwit migration status", name)
}

func printMigration(w io.Writer, name, to string, r *live.Report) error {
	d := r.Downtime
	how := fmt.Sprintf("%s in %d rounds, %s on the wire", size(r.Bytes), r.Rounds, size(r.Wire))
	if r.Shared > 0 {
		how = fmt.Sprintf("%s of memory passed on, none copied", size(r.Shared))
	}
	_, err := fmt.Fprintf(w, "%s moved to %s in %v: %s\n"+
		"it stood still for %v: pause %v, last round %v (%s), state %v, handover %v\n",
		name, to, r.Total.Round(time.Millisecond), how,
		rounded(d.Total), rounded(d.Pause), rounded(d.LastRound+d.Save), size(d.Rest), rounded(d.State), rounded(d.Handover))
	if s := r.Disks; err == nil && s != (stream.DiskStats{}) {
		_, err = fmt.Fprintf(w, "disks: %s, %s of it while it stood still; %s were zeros, %s were there already\n",
			size(s.Data), size(d.DiskRest), size(s.Zero), size(s.Same))
	}
	if p := r.PostCopy; err == nil && p != nil {
		_, err = fmt.Fprintln(w, postCopyText(p))
	}
	return err
}

// postCopyText says how the rest of the memory came.
func postCopyText(p *live.PostCopyReport) string {
	text := fmt.Sprintf("%s followed in %v, %s of it because the guest waited: ", size(p.Asked+p.Pushed), p.Took.Round(time.Millisecond), size(p.Asked))
	if p.Unwanted {
		return text + "it ended before all was there"
	}
	return text + fmt.Sprintf("%d times, half of them at most %v, 99 of 100 %v, the longest %v", p.Faults, rounded(p.P50), rounded(p.P99), rounded(p.Longest))
}

func rounded(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

// migrationView shows how a migration stands.
type migrationView struct {
	name, to string
	// bar is the terminal; nil for none.
	bar   io.Writer
	phase live.Phase
	// cut is set while the rest of the memory does not get to the other host.
	cut     bool
	report  *live.Report
	failure string
	shown   bool
}

func (v *migrationView) take(s api.MigrationStatus) {
	switch {
	case s.Report != nil:
		v.report = s.Report
	case s.Error != "":
		v.failure = s.Error
	case s.Progress != nil:
		v.progress(s.Progress)
	}
}

func (v *migrationView) progress(p *live.Progress) {
	if v.bar != nil {
		v.shown = true
		text := v.line(p)
		if width, _, err := term.GetSize(int(os.Stderr.Fd())); err == nil {
			// A line that wraps is not overwritten by the next.
			text = text[:min(len(text), max(width-1, 0))]
		}
		fmt.Fprintf(v.bar, "\r\x1b[K%s", text)
	}
	doubt := p.Phase == live.PhaseInDoubt || p.Phase == live.PhaseStuck
	cut := p.Phase == live.PhasePostCopy && p.Reason != ""
	if doubt && v.phase != p.Phase || cut && !v.cut {
		v.clear()
		fmt.Fprintf(os.Stderr, "godwit: %s is %s: %s\n", v.name, p.Phase, printable(p.Reason))
	}
	v.phase, v.cut = p.Phase, cut
}

// line is one line for a terminal.
func (v *migrationView) line(p *live.Progress) string {
	switch {
	case p.Phase == live.PhasePostCopy:
		return fmt.Sprintf("%s: %s runs there, %s of its memory are still here, %s/s", v.name, gauge(p.Sent, p.Remaining), size(p.Remaining), size(p.Rate))
	case p.Phase != live.PhaseCopy:
		return fmt.Sprintf("%s: %s", v.name, p.Phase)
	case p.Round == 0 && p.DiskSent+p.DiskRemaining > 0 && p.Sent == 0:
		return fmt.Sprintf("%s: %s disks: %s, %s/s", v.name, gauge(p.DiskSent, p.DiskRemaining), diskText(p), size(p.Rate))
	}
	text := fmt.Sprintf("%s: %s round %d, %s sent, %s left, %s/s", v.name, gauge(p.Sent, p.Remaining), max(p.Round, 1), size(p.Sent), size(p.Remaining), size(p.Rate))
	if p.DiskSent+p.DiskRemaining > 0 {
		text += ", disks " + diskText(p)
	}
	if p.DirtyRate > 0 {
		text += fmt.Sprintf(", written %s/s", size(p.DirtyRate))
	}
	if p.Predicted > 0 {
		text += fmt.Sprintf(", pause %v", p.Predicted.Round(time.Millisecond))
	}
	if p.Throttle > 0 {
		text += fmt.Sprintf(", slowed by %d%%", p.Throttle)
	}
	return text
}

// diskText says how far the disks are.
func diskText(p *live.Progress) string {
	return fmt.Sprintf("%s sent, %s left", size(p.DiskSent), size(p.DiskRemaining))
}

// gauge shows how much of something is done.
func gauge(done, left uint64) string {
	const width = 20
	n := 0
	if done > 0 {
		n = int(width * (float64(done) / (float64(done) + float64(left))))
	}
	return "[" + strings.Repeat("#", n) + strings.Repeat(".", width-n) + "]"
}

func (v *migrationView) clear() {
	if v.shown {
		v.shown = false
		fmt.Fprint(v.bar, "\r\x1b[K")
	}
}
