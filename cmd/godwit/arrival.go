package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"github.com/godwit-vmm/godwit/guest/agent"
	"github.com/godwit-vmm/godwit/internal/rundir"
	"github.com/godwit-vmm/godwit/internal/vmm"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/memory"
	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/live"
	"golang.org/x/sys/unix"
)

// receiver is where a guest comes to.
type receiver struct {
	o       *receiveOptions
	tls     *tls.Config
	journal *handover.Journal
	sys     *kvm.System
	request vmm.ReceiveRequest
	// background has the guest's console go to a file.
	background bool
	came       chan *arrival

	mu sync.Mutex
	// taken is set while a guest is coming, or here.
	taken bool
}

// newReceiver finds out whether a guest could come. The caller closes sys.
func newReceiver(o *receiveOptions) (*receiver, error) {
	config, err := o.tls.server()
	if err != nil {
		return nil, err
	}
	r := &receiver{o: o, tls: config, came: make(chan *arrival, 1)}
	if r.request.Disks, err = pairs("--disk", o.disks); err != nil {
		return nil, err
	}
	if r.request.Taps, err = pairs("--tap", o.taps); err != nil {
		return nil, err
	}
	r.request.Trusted, r.request.DiskFolder, r.request.KeepPartial = config != nil, o.diskFolder, o.keepPartial
	if r.journal, err = openJournal(); err != nil {
		return nil, err
	}
	if r.sys, err = openKVM(o.allowSoftware, nil); err != nil && r.sys != nil {
		err = errors.Join(err, r.sys.Close())
	}
	return r, err
}

// server is the other half of this host's part in a migration.
func (r *receiver) server() *live.Server {
	host, _ := os.Hostname()
	return &live.Server{Journal: r.journal, Host: host, TLS: r.tls, New: r.place, Ended: r.ended}
}

// takeOne waits on l for a guest and runs it to its end, or until waiting ends before it
// has come; stop has waiting not hear of signals any more.
func (r *receiver) takeOne(ctx, waiting context.Context, stop func(), l net.Listener) error {
	serving, end := context.WithCancel(ctx)
	defer end()
	server := r.server()
	server.Ended = func(offer live.Offer, state handover.DestinationState, err error) {
		r.ended(offer, state, err)
		if state == handover.DestinationDone {
			end() // nobody will ask any more: others may listen here
		}
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(serving, l) }()
	var a *arrival
	select {
	case a = <-r.came:
	case err := <-served:
		select {
		case a = <-r.came:
			served <- err
		default:
			return err
		}
	case <-waiting.Done():
		end()
		<-served
		return errors.New("interrupted; no guest came")
	}
	stop()
	err := a.run()
	end()
	return errors.Join(err, <-served, a.close())
}

// busy says that a guest is coming, or here.
func (r *receiver) busy() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.taken
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
		return nil, errors.New("a guest is here already, or just coming: start another godwit receive for this one, or one with --stay")
	}
	n := r.o.naming
	if !n.named {
		n.name, n.named = offer.Name, true
	}
	n.arriving, n.after = true, offer.Peer
	if n.vsock == "" && !hasVsock(offer) {
		n.vsock = vsockOff
	}
	n.renew = func(ctx context.Context, c *agent.Client) { renew(ctx, c, true, nil) }
	i, err := newInstance(n)
	if err != nil {
		return nil, err
	}
	var out io.Writer = os.Stdout
	err = i.dir.SetArriving(true)
	if err == nil && r.background {
		out, err = i.dir.OpenLog(rundir.ConsoleFile)
	}
	if err != nil {
		return nil, errors.Join(err, i.close())
	}
	a := &arrival{r: r, i: i}
	run := vmm.Options{System: r.sys, Name: i.name, Identify: i.identify, NoReboot: r.o.noReboot}
	a.h = newHost(&run, out)
	run.Built = a.built
	a.h.vm = vmm.New(context.Background(), run, vmm.Config{})
	request := r.request
	request.From = offer.Name
	// The process that has the name, in a folder that is this user's alone, is no stranger.
	request.Trusted = request.Trusted || i.dir.Aside()
	request.Told = func(p handover.Phase, reason string) {
		if reason != "" {
			fmt.Fprintf(os.Stderr, "godwit: %s: %s: %s\r\n", i.name, p, reason)
		}
	}
	request.Note = func(text string) { fmt.Fprintf(os.Stderr, "godwit: %s: %s\r\n", i.name, printable(text)) }
	a.Incoming = a.h.vm.Receive(request)
	r.taken = true
	return a, nil
}

// hasVsock says whether the guest that is offered has a vsock device, and is to have one
// here. An offer that cannot be read is refused by others.
func hasVsock(offer live.Offer) bool {
	var guest struct {
		Machine struct{ Virtio []struct{ Name string } }
	}
	_ = json.Unmarshal(offer.Guest, &guest)
	for _, device := range guest.Machine.Virtio {
		if device.Name == "vsock" {
			return true
		}
	}
	return false
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
	// The guest runs. Whoever is told so, which comes next, finds it by its name.
	<-a.h.listening
	if err := a.i.dir.Take(); err != nil {
		// It runs, and that is more.
		fmt.Fprintf(os.Stderr, "godwit: %v\r\n", err)
	}
	a.r.came <- a
	return nil
}

// built is vmm.Options.Built.
func (a *arrival) built() (err error) {
	a.h.serve(a.i)
	a.h.watch(nil)
	if a.r.background {
		return nil
	}
	if a.t, err = openTerminal(os.Stdin); a.t != nil {
		fmt.Fprintf(os.Stderr, "godwit: console of %s; Ctrl-a x quits\r\n", a.i.name)
	}
	return err
}

// run leads a guest that has come to its end.
func (a *arrival) run() error {
	signals := watchSignals(a.h.vm, unix.SIGTERM, unix.SIGINT)
	defer signals.stop()
	<-signals.begun
	// Others ask the guest itself from now on: should this fail, it only looks odd.
	_ = a.i.dir.SetArriving(false)
	if a.r.background {
		// From now on this process is the guest's. If the file cannot be, messages
		// go where they went.
		_ = messagesTo(a.i.dir.Path(messagesFile))
	} else if !background(os.Stdin) {
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
		fmt.Fprintf(os.Stderr, "godwit: guest %s did not come: %v\r\n", printable(offer.Name), err)
	}
}
