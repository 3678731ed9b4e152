package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/godwit-vmm/godwit/devices/virtio/vsock"
	"github.com/godwit-vmm/godwit/guest/agent"
	"github.com/godwit-vmm/godwit/internal/rundir"
	"github.com/godwit-vmm/godwit/internal/vmm"
	"golang.org/x/sys/unix"
)

const (
	// vsockOff is the value of --vsock for a guest without the device.
	vsockOff = "off"
	// agentTimeout bounds how long a guest's agent may take to answer.
	agentTimeout = 20 * time.Second
	// helloTimeout bounds how long a guest may take that has connected to say that
	// it is up.
	helloTimeout = 10 * time.Second
	// falseAlarmPause is waited after a guest said that it is up and its
	// agent did not answer, so that a guest cannot keep the host busy.
	falseAlarmPause = 100 * time.Millisecond
)

// naming says how others are to find a guest.
type naming struct {
	name string
	// named means that the user gave the name; else it is the first free one of
	// name, name-2 and so on.
	named bool
	// needed means that the guest is of no use where others do not find it.
	needed bool
	// vsock is the path of the vsock device's socket, "" for one in the guest's
	// folder, or vsockOff.
	vsock string
	// complete, if set, fills in what the user has left open.
	complete func(*naming) error
	// renew, if set, is called with the agent of a restored guest, once.
	renew func(context.Context, *agent.Client)
	// arriving guests come from another host, which the journal need not know yet.
	arriving bool
	// after is the process of this host that it comes from, which may have the name; 0 is
	// none.
	after int
}

// instance is how others find the guest that this process runs, over reboots.
type instance struct {
	name string
	// renew is that of naming, until it was called.
	renew func(context.Context, *agent.Client)
	// dir is the guest's folder; nil if it has none.
	dir *rundir.Dir
	// vsock is the path of the device's socket, empty without the device.
	vsock string
	// bell is where the guest says that it is up; nil without the device.
	bell *net.UnixListener
	// answers, if set, is called each time that the guest is up and its agent
	// answers.
	answers func()
}

// registration is an instance that is being made while the machine is.
type registration struct {
	done chan struct{}
	i    *instance
	err  error
}

// register makes the guest known to others, in the background: that takes as long
// as half of the rest of a start.
func register(n naming) *registration {
	r := &registration{done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.i, r.err = newInstance(n)
	}()
	return r
}

// wait returns what became of it.
func (r *registration) wait() (*instance, error) {
	<-r.done
	return r.i, r.err
}

// identify is vmm.Options.Identify.
func (r *registration) identify(c vmm.Config) (vmm.Identity, error) {
	i, err := r.wait()
	if err != nil {
		return vmm.Identity{}, err
	}
	return i.identify(c)
}

// newInstance makes the guest known by its name. Where that cannot be, a guest that
// does not need it does without.
func newInstance(n naming) (*instance, error) {
	if n.complete != nil {
		if err := n.complete(&n); err != nil {
			return nil, err
		}
	}
	i := &instance{name: n.name, renew: n.renew}
	var err error
	if n.named {
		if !n.arriving {
			if err := mayStart(n.name); err != nil {
				return nil, err
			}
		}
		i.dir, err = rundir.CreateAfter(n.name, n.after)
	} else {
		i.dir, err = rundir.CreateNumbered(n.name, func(name string) bool { return mayStart(name) == nil })
	}
	switch {
	case err == nil:
		i.name = i.dir.Name()
		i.vsock = i.dir.Path(rundir.VsockFile)
	case n.needed:
		return nil, err
	}
	switch n.vsock {
	case "":
	case vsockOff:
		i.vsock = ""
	default:
		i.vsock = n.vsock
		if i.dir != nil {
			if err := i.dir.SetVsock(n.vsock); err != nil {
				return nil, errors.Join(err, i.close())
			}
		}
	}
	if i.vsock == "" {
		return i, nil
	}
	if i.bell, err = vsock.Listen(i.vsock, agent.Port); err != nil {
		return nil, errors.Join(err, i.close())
	}
	return i, nil
}

// identify is vmm.Options.Identify.
func (i *instance) identify(c vmm.Config) (vmm.Identity, error) {
	if c.Vsock != nil {
		if err := i.moveVsock(c.Vsock.Path); err != nil {
			return vmm.Identity{}, err
		}
	}
	return vmm.Identity{Name: i.name, Vsock: i.vsock}, nil
}

// moveVsock has the socket of the vsock device at another path.
func (i *instance) moveVsock(path string) error {
	if path == i.vsock {
		return nil
	}
	if i.bell != nil {
		// What it was for is over, whatever this says.
		_ = i.bell.Close()
		i.bell = nil
	}
	i.vsock = path
	if i.dir != nil {
		if err := i.dir.SetVsock(path); err != nil {
			return err
		}
	}
	bell, err := vsock.Listen(path, agent.Port)
	if errors.Is(err, unix.EADDRINUSE) {
		// Whoever listens there wants to hear from the agent instead.
		return nil
	}
	i.bell = bell
	return err
}

// close makes the guest unknown.
func (i *instance) close() error {
	var errs []error
	if i.bell != nil {
		errs = append(errs, i.bell.Close())
	}
	if i.dir != nil {
		errs = append(errs, i.dir.Close())
	}
	return errors.Join(errs...)
}

// awaitUp waits until the guest says that it is up and its agent answers, which
// it tells others. The guest is up until the connection bell ends.
func (i *instance) awaitUp(ctx context.Context) (_ *agent.Client, bell net.Conn, _ error) {
	for {
		bell, err := i.ring(ctx)
		if err != nil {
			return nil, nil, err
		}
		var client *agent.Client
		stop := context.AfterFunc(ctx, func() { _ = bell.Close() })
		err = agent.AwaitHello(bell, helloTimeout)
		stop()
		if err == nil {
			// Any program of the guest can connect to this port, but only the
			// agent can listen at its own.
			client, err = dialAgent(ctx, i.vsock)
		}
		if err == nil {
			if err = i.setUp(client.Info()); err == nil {
				if i.answers != nil {
					i.answers()
				}
				return client, bell, nil
			}
			return nil, nil, errors.Join(err, client.Close(), bell.Close())
		}
		// It may be closed already.
		_ = bell.Close()
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		select {
		case <-time.After(falseAlarmPause):
		case <-ctx.Done():
		}
	}
}

// ring waits for the next connection of the guest.
func (i *instance) ring(ctx context.Context) (net.Conn, error) {
	if err := i.bell.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		// There is no error for a listener that is open.
		_ = i.bell.SetDeadline(time.Unix(1, 0))
	})
	defer func() {
		if !stop() {
			<-stopped
		}
	}()
	c, err := i.bell.Accept()
	if ctx.Err() != nil {
		if c != nil {
			err = c.Close()
		}
		return nil, errors.Join(ctx.Err(), err)
	}
	return c, err
}

func (i *instance) setUp(info agent.Info) error {
	if i.dir == nil {
		return nil
	}
	return i.dir.SetUp(info)
}

func (i *instance) setDown() error {
	if i.dir == nil {
		return nil
	}
	return i.dir.SetDown()
}

// watch keeps others informed of whether the guest is up, until the context ends.
// up is called the first time.
func (i *instance) watch(ctx context.Context, up func() error) error {
	if i.bell == nil {
		return nil
	}
	for {
		client, bell, err := i.awaitUp(ctx)
		if err != nil {
			return ignoreDone(ctx, err)
		}
		if i.renew != nil {
			i.renew(ctx, client)
			i.renew = nil
		}
		err = client.Close()
		if up != nil {
			err = errors.Join(err, up())
			up = nil
		}
		if err != nil {
			return errors.Join(err, bell.Close())
		}
		stop := context.AfterFunc(ctx, func() { _ = bell.Close() })
		// The guest has nothing to say here; it ends when it goes down.
		_, _ = io.Copy(io.Discard, bell)
		stop()
		_ = bell.Close()
		if err := i.setDown(); err != nil {
			return ignoreDone(ctx, err)
		}
	}
}

// ignoreDone drops the errors of what was broken off.
func ignoreDone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// dialAgent connects to the agent of the guest whose vsock device has its socket
// at path.
func dialAgent(ctx context.Context, path string) (*agent.Client, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, agentTimeout, fmt.Errorf("the guest's agent did not answer within %v", agentTimeout))
	defer cancel()
	rw, err := vsock.Dial(ctx, path, agent.Port)
	if err == nil {
		var client *agent.Client
		if client, err = agent.Dial(ctx, rw); err == nil {
			return client, nil
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = context.Cause(ctx)
	}
	return nil, err
}

// connect connects to the agent of a guest that runs.
func connect(ctx context.Context, name string) (*agent.Client, error) {
	vm, err := rundir.Open(name)
	if err != nil {
		return nil, err
	}
	defer vm.Close()
	up, err := vm.Up(nil)
	if err != nil {
		return nil, err
	}
	if !up {
		return nil, fmt.Errorf("guest %s runs and has not said that it is up: wait with: godwit wait %s (a system of your own needs godwit-agent)", name, name)
	}
	client, err := dialAgent(ctx, vm.VsockPath())
	if errors.Is(err, os.ErrNotExist) {
		err = rundir.ErrNotRunning
	}
	if err != nil {
		return nil, fmt.Errorf("guest %s: %w", name, err)
	}
	return client, nil
}
