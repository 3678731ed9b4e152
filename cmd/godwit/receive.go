package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/godwit-vmm/godwit/internal/rundir"
	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// receiveOptions are the flags of receive.
type receiveOptions struct {
	naming
	listen        string
	tls           tlsFlags
	insecure      bool
	stay, detach  bool
	disks, taps   []string
	diskFolder    string
	keepPartial   bool
	allowSoftware bool
	noReboot      bool
}

func newReceive() *cobra.Command {
	var o receiveOptions
	c := &cobra.Command{
		Use:   "receive --listen ADDR",
		Short: "Wait for a guest that comes from another host",
		Long: `Wait for a guest that "godwit migrate" sends from another host, and run it here.

ADDR is HOST:PORT or unix:PATH. With TLS both hosts prove who they are; who comes may
then name the disks and network interfaces that the guest gets here. Without TLS they
have to be given with --disk and --tap, and only addresses of this host itself are
listened on, unless --insecure is given.

Disks that come with the guest (godwit migrate --with-disks) get new files: what --disk
names must not be there yet, and others go to --disk-folder. A file has its name when the
guest is about to run, and ends in .incoming before. When the migration fails it is
removed, unless --keep-partial is given: then the next attempt sends only what is not in
it.

At unix:PATH a guest of this user comes from another godwit on this host, without a copy
of its memory. It brings its disks, its network and its name along: nothing has to be
given.

A guest whose migration fails is still the other host's, and can come again. This
process becomes that of the guest when it has come, and its console is here.

With --stay guests are taken until this process is ended, each by a process of its own,
as with "godwit boot --detach"; those that have come run on after that. With --detach
it all goes on in the background, and messages go to receive.log in the folder for
godwit's state; the address that is listened on is printed.`,
		Example: `  godwit receive --listen 0.0.0.0:7000 --tls-cert host2.pem --tls-key host2.key --tls-ca ca.pem
  godwit receive --listen 127.0.0.1:7000 --name web2 --disk 0=/images/web.img
  godwit receive --listen 127.0.0.1:7000 --disk-folder /images --keep-partial
  godwit receive --listen unix:/run/upgrade.sock --detach
  godwit receive --listen 10.0.0.2:7000 --stay --detach --tls-cert host2.pem --tls-key host2.key --tls-ca ca.pem`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.named = cmd.Flags().Changed("name")
			o.needed = true
			return o.run(cmd.Context(), cmd.OutOrStdout())
		},
	}
	o.tls.add(c)
	f := c.Flags()
	f.StringVar(&o.listen, "listen", "", "where to wait, `ADDR`")
	f.StringVar(&o.name, "name", "", "name of the guest here (default: that of where it comes from)")
	f.BoolVar(&o.stay, "stay", false, "take guests until this process is ended")
	f.BoolVar(&o.detach, "detach", false, "wait in the background, and print the address as soon as it is listened on")
	f.BoolVar(&o.insecure, "insecure", false, "listen without TLS: who reaches the address can read and change the guest")
	f.StringArrayVar(&o.disks, "disk", nil, "have the guest's disk ID at `ID=PATH` here; may be repeated")
	f.StringVar(&o.diskFolder, "disk-folder", "", "put disks that come with the guest into `DIR`, as NAME-0.img and so on")
	f.BoolVar(&o.keepPartial, "keep-partial", false, "keep what has come of a disk when the migration fails, for the next attempt")
	f.StringArrayVar(&o.taps, "tap", nil, "connect the guest's network card ID to a tap interface `ID=NAME` here; may be repeated")
	f.StringVar(&o.vsock, "vsock", "", "have the socket of the guest's vsock device at `PATH` (default: in the folder of the running guest)")
	f.BoolVar(&o.noReboot, "no-reboot", false, "end when the guest reboots, instead of rebooting it")
	f.BoolVar(&o.allowSoftware, "allow-software-kvm", false, "go on where KVM emulates ring 0 (Linux does not run there)")
	_ = c.MarkFlagRequired("listen")
	return c
}

// run is one of the processes that receive consists of.
func (o *receiveOptions) run(ctx context.Context, stdout io.Writer) error {
	if o.stay && (o.named || o.vsock != "") {
		return errors.New("--stay takes guests by the names that they have, and --name and --vsock are for one: leave them out")
	}
	if id, ok := os.LookupEnv(inletVariable); ok {
		return receiveOne(ctx, o, id)
	}
	if _, started := os.LookupEnv(readyVariable); o.detach && !started {
		return startInBackground(ctx, "the receiver", 0, stdout)
	}
	s, err := newStarter()
	if err != nil {
		return err
	}
	return receive(ctx, o, s)
}

// receiveLog is the file for what a receiver in the background has to say.
const receiveLog = "receive.log"

// receive listens, and takes one guest or, with --stay, many. s is nil in the foreground.
func receive(ctx context.Context, o *receiveOptions, s *starter) error {
	r, err := newReceiver(o)
	if err != nil {
		return err
	}
	defer r.sys.Close()
	l, err := o.listener(r.tls != nil)
	if err != nil {
		return err
	}
	defer l.Close()
	waiting, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := tellUnsettled(ctx, r.journal); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "godwit: waiting for guests at %s\n", address(l))
	if s != nil {
		r.background = true
		s.watch(stop)
		if err := s.detach(address(l)); err != nil {
			return err
		}
	}
	if o.stay {
		return stay(waiting, l)
	}
	return r.takeOne(ctx, waiting, stop, l)
}

// detach leaves where this process was started.
func (s *starter) detach(addr string) error {
	state, err := rundir.StateDir()
	if err != nil {
		return err
	}
	if err := messagesTo(filepath.Join(state, receiveLog)); err != nil {
		return err
	}
	return s.ready(addr)
}

// tellUnsettled says which guests another host may ask for, or should be asked for.
func tellUnsettled(ctx context.Context, journal *handover.Journal) error {
	open, err := journal.Unsettled()
	if err != nil || len(open) == 0 {
		return err
	}
	guests, err := movingGuests(ctx)
	if err != nil {
		return err
	}
	var rows []migrationRow
	for _, r := range open {
		rows = append(rows, describeRecord(handover.Found{Key: r.Key(), Record: r}, true, guests[r.VM]))
	}
	fmt.Fprintln(os.Stderr, "godwit: migrations that are not over:")
	return printMigrations(os.Stderr, rows)
}

// listener listens, without TLS only where nobody from outside can connect.
func (o *receiveOptions) listener(secure bool) (net.Listener, error) {
	if path, ok := strings.CutPrefix(o.listen, "unix:"); ok {
		return listenAlone(path)
	}
	addr, err := net.ResolveTCPAddr("tcp", o.listen)
	if err != nil {
		return nil, fmt.Errorf("--listen %s: %w: want HOST:PORT or unix:PATH", o.listen, err)
	}
	if !secure && !o.insecure && !addr.IP.IsLoopback() {
		return nil, fmt.Errorf("--listen %s: without TLS whoever reaches this address could read and change the guest: give --tls-cert, --tls-key and --tls-ca, listen on 127.0.0.1, or say --insecure", o.listen)
	}
	l, err := net.ListenTCP("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("--listen %s: %w", o.listen, err)
	}
	return l, nil
}

func address(l net.Listener) string {
	if l.Addr().Network() == "unix" {
		return "unix:" + l.Addr().String()
	}
	return l.Addr().String()
}
