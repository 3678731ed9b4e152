package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"

	"github.com/godwit-vmm/godwit/guest/agent"
	"github.com/godwit-vmm/godwit/internal/vmm"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/live"
	"github.com/godwit-vmm/godwit/migrate/stream"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// receiveOptions are the flags of receive.
type receiveOptions struct {
	naming
	listen        string
	tls           tlsFlags
	insecure      bool
	disks, taps   []string
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

A guest whose migration fails is still the other host's, and can come again. This
process becomes that of the guest when it has come, and its console is here.`,
		Example: `  godwit receive --listen 0.0.0.0:7000 --tls-cert host2.pem --tls-key host2.key --tls-ca ca.pem
  godwit receive --listen 127.0.0.1:7000 --name web2 --disk 0=/images/web.img`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.named = cmd.Flags().Changed("name")
			o.needed = true
			return receive(cmd.Context(), &o)
		},
	}
	o.tls.add(c)
	f := c.Flags()
	f.StringVar(&o.listen, "listen", "", "where to wait, `ADDR`")
	f.StringVar(&o.name, "name", "", "name of the guest here (default: that of where it comes from)")
	f.BoolVar(&o.insecure, "insecure", false, "listen without TLS: who reaches the address can read and change the guest")
	f.StringArrayVar(&o.disks, "disk", nil, "have the guest's disk ID at `ID=PATH` here; may be repeated")
	f.StringArrayVar(&o.taps, "tap", nil, "connect the guest's network card ID to a tap interface `ID=NAME` here; may be repeated")
	f.StringVar(&o.vsock, "vsock", "", "have the socket of the guest's vsock device at `PATH` (default: in the folder of the running guest)")
	f.BoolVar(&o.noReboot, "no-reboot", false, "end when the guest reboots, instead of rebooting it")
	f.BoolVar(&o.allowSoftware, "allow-software-kvm", false, "go on where KVM emulates ring 0 (Linux does not run there)")
	_ = c.MarkFlagRequired("listen")
	return c
}

// receive waits for a guest and runs it to its end.
func receive(ctx context.Context, o *receiveOptions) error {
	config, err := o.tls.server()
	if err != nil {
		return err
	}
	r := &receiver{o: o, tls: config, came: make(chan *arrival, 1)}
	if r.request.Disks, err = pairs("--disk", o.disks); err != nil {
		return err
	}
	if r.request.Taps, err = pairs("--tap", o.taps); err != nil {
		return err
	}
	r.request.Trusted = config != nil
	if r.journal, err = openJournal(); err != nil {
		return err
	}
	if r.sys, err = openKVM(o.allowSoftware, nil); err != nil {
		if r.sys != nil {
			err = errors.Join(err, r.sys.Close())
		}
		return err
	}
	defer r.sys.Close()
	l, err := o.listener(config)
	if err != nil {
		return err
	}
	waiting, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer stop()
	serving, end := context.WithCancel(ctx)
	host, _ := os.Hostname()
	server := &live.Server{Journal: r.journal, Host: host, TLS: config, New: r.place, Ended: r.ended}
	served := make(chan error, 1)
	go func() { served <- server.Serve(serving, l) }()
	fmt.Fprintf(os.Stderr, "godwit: waiting for a guest at %s\n", address(l))
	defer func() { end() }()
	select {
	case err := <-served:
		return err
	case <-waiting.Done():
		end()
		<-served
		return errors.New("interrupted; no guest came")
	case a := <-r.came:
		stop()
		err := a.run()
		end()
		return errors.Join(err, <-served, a.close())
	}
}

// server is the configuration of a host that receives, nil for none.
func (t *tlsFlags) server() (*tls.Config, error) {
	if t.cert == "" && t.key == "" && t.ca == "" {
		return nil, nil
	}
	return stream.LoadTLS(t.cert, t.key, t.ca, true)
}

// listener listens, without TLS only where nobody from outside can connect.
func (o *receiveOptions) listener(config *tls.Config) (net.Listener, error) {
	if path, ok := strings.CutPrefix(o.listen, "unix:"); ok {
		return listenAlone(path)
	}
	addr, err := net.ResolveTCPAddr("tcp", o.listen)
	if err != nil {
		return nil, fmt.Errorf("--listen %s: %w: want HOST:PORT or unix:PATH", o.listen, err)
	}
	if config == nil && !o.insecure && !addr.IP.IsLoopback() {
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

// receiver is where a guest comes to.
type receiver struct {
	o       *receiveOptions
	tls     *tls.Config
	journal *handover.Journal
	sys     *kvm.System
	request vmm.ReceiveRequest
	came    chan *arrival

	mu sync.Mutex
	// taken is set while a guest is coming, or here.
	taken bool
}

// arrival is a guest that comes, or has come.
type arrival struct {
	live.Incoming
	r *receiver
	i *instance
	h *host
	t *terminal
	// over closes what there is, once.
	over sync.Once
	err  error
}

// place is live.Server.New.
func (r *receiver) place(offer live.Offer) (live.Incoming, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.taken {
		return nil, errors.New("a guest is here already, or just coming: start another godwit receive for this one")
	}
	n := r.o.naming
	if !n.named {
		n.name, n.named = offer.Name, true
	}
	n.arriving = true
	n.renew = func(ctx context.Context, c *agent.Client) { renew(ctx, c, true, nil) }
	i, err := newInstance(n)
	if err != nil {
		return nil, err
	}
	a := &arrival{r: r, i: i}
	run := vmm.Options{System: r.sys, Name: i.name, Identify: i.identify, NoReboot: r.o.noReboot}
	a.h = newHost(&run, os.Stdout)
	run.Built = a.built
	a.h.vm = vmm.New(context.Background(), run, vmm.Config{})
	request := r.request
	request.From = offer.Name
	request.Told = func(p handover.Phase, reason string) {
		if reason != "" {
			fmt.Fprintf(os.Stderr, "godwit: %s: %s: %s\r\n", i.name, p, reason)
		}
	}
	a.Incoming = a.h.vm.Receive(request)
	r.taken = true
	return a, nil
}

// Prepare is that of live.Incoming.
func (a *arrival) Prepare(offer live.Offer) (*memory.Guest, error) {
	fmt.Fprintf(os.Stderr, "godwit: guest %s is coming\n", a.i.name)
	return a.Incoming.Prepare(offer)
}

// Destroy is that of live.Incoming.
func (a *arrival) Destroy() {
	a.Incoming.Destroy()
	a.over.Do(func() {
		a.err = errors.Join(a.h.close(), a.i.close())
		a.r.mu.Lock()
		defer a.r.mu.Unlock()
		a.r.taken = false
	})
}

// Run is that of live.Incoming.
func (a *arrival) Run() error {
	if err := a.Incoming.Run(); err != nil {
		return err
	}
	a.r.came <- a
	return nil
}

// built is vmm.Options.Built.
func (a *arrival) built() (err error) {
	a.h.serve(a.i)
	a.h.watch(nil)
	if a.t, err = openTerminal(os.Stdin); a.t != nil {
		fmt.Fprintf(os.Stderr, "godwit: console of %s; Ctrl-a x quits\r\n", a.i.name)
	}
	return err
}

// run leads a guest that has come to its end.
func (a *arrival) run() error {
	defer watchSignals(a.h.vm, unix.SIGTERM, unix.SIGINT)()
	if !background(os.Stdin) {
		go typeKeys(a.h.vm, os.Stdin, a.t != nil)
	}
	outcome, err := a.h.vm.Wait()
	a.t.restore()
	if outcome == machine.Killed {
		return quitStatus(a.h.vm.Cause())
	}
	return ended(outcome, err)
}

func (a *arrival) close() error {
	a.over.Do(func() { a.err = errors.Join(a.h.close(), a.i.close()) })
	return a.err
}

// ended is live.Server.Ended.
func (r *receiver) ended(offer live.Offer, state handover.DestinationState, err error) {
	if err != nil && offer.Name != "" {
		fmt.Fprintf(os.Stderr, "godwit: guest %s did not come: %v\r\n", offer.Name, err)
	}
}
