package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/godwit-vmm/godwit/migrate/live"
	"github.com/godwit-vmm/godwit/migrate/stream"
	"golang.org/x/sys/unix"
)

// inletVariable is the environment variable with the ID of the migration, for the process
// that takes part in it. Its descriptors are the migration's socket, and a pipe that tells
// that the guest is here.
const inletVariable = "GODWIT_MIGRATION"

const (
	inletFD = 3 + iota
	arrivedFD
)

const (
	// maxComing bounds how many processes may be without a guest at once.
	maxComing = 16
	// maxUnread bounds how many connections may be without a preamble at once.
	maxUnread = 64
	// idleTime is how often a process without a guest looks whether it is of use.
	idleTime = 10 * time.Second
)

// stayer listens for guests, and has a process for each.
type stayer struct {
	inlets *inlets
	self   string
	// starting is held while a process is started: there is one a migration.
	starting sync.Mutex
	// coming has a token for each process without a guest.
	coming chan struct{}
}

// stay takes guests from l until ctx ends, which those that came do not notice.
func stay(ctx context.Context, l net.Listener) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	n, err := openInlets()
	if err != nil {
		return err
	}
	defer n.close()
	if err := n.sweep(); err != nil {
		return err
	}
	s := &stayer{inlets: n, self: self, coming: make(chan struct{}, maxComing)}
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	var reading sync.WaitGroup
	defer reading.Wait()
	unread := make(chan struct{}, maxUnread)
	for {
		unread <- struct{}{}
		conn, err := live.Accept(ctx, l)
		if conn == nil || err != nil {
			return err
		}
		reading.Go(func() {
			defer func() { <-unread }()
			defer conn.Close()
			if p, err := stream.ReadPreamble(conn, time.Now().Add(stream.SetUpTime)); err == nil {
				s.pass(conn, p)
			}
		})
	}
}

// pass passes a connection on to the process of its migration.
func (s *stayer) pass(conn net.Conn, p stream.Preamble) {
	to, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	err := s.inlets.pass(to, p)
	if errors.Is(err, errNoInlet) {
		if p.Channel != stream.Control {
			stream.Refuse(conn, fmt.Sprintf("migration %v is not known here: start it again from the source", p.ID))
			return
		}
		if err = s.start(p.ID); err == nil {
			err = s.inlets.pass(to, p)
		}
	}
	if err != nil {
		stream.Refuse(conn, "this host cannot take part in the migration now: "+err.Error())
	}
}

// start starts the process of a migration, unless there is one by now.
func (s *stayer) start(id stream.ID) error {
	s.starting.Lock()
	defer s.starting.Unlock()
	select {
	case s.coming <- struct{}{}:
	default:
		return fmt.Errorf("%d guests are coming already: try again later", maxComing)
	}
	left := func() { <-s.coming }
	l, err := s.inlets.listen(id)
	if err != nil {
		left()
		// Of two connections of one migration the first has started it.
		if c, dialed := net.DialTimeout("unix", s.inlets.path(id), dialTimeout); dialed == nil {
			return c.Close()
		}
		return err
	}
	defer l.Close()
	c, arrived, err := s.spawn(id, l)
	if err != nil {
		left()
		return errors.Join(err, s.inlets.remove(id))
	}
	go func() {
		// The guest is here, or the process has ended.
		_, _ = arrived.Read(make([]byte, 1))
		left()
		_ = errors.Join(arrived.Close(), c.Wait())
	}()
	return nil
}

// spawn starts this program again, apart from the terminal.
func (s *stayer) spawn(id stream.ID, l *net.UnixListener) (*exec.Cmd, *os.File, error) {
	inlet, err := l.File()
	if err != nil {
		return nil, nil, err
	}
	defer inlet.Close()
	arrived, theirs, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	c := exec.Command(s.self, os.Args[1:]...)
	c.Stderr = os.Stderr
	c.ExtraFiles = []*os.File{inlet, theirs}
	c.Env = append(os.Environ(), inletVariable+"="+id.String())
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("start a process for the guest: %w", err), arrived.Close())
	}
	return c, arrived, nil
}

// receiveOne is the process of one migration. It ends with the guest, or when none comes.
func receiveOne(ctx context.Context, o *receiveOptions, name string) error {
	var id stream.ID
	if err := id.UnmarshalText([]byte(name)); err != nil {
		return fmt.Errorf("%s is for godwit's own use: %w", inletVariable, err)
	}
	// The process that listens may have ended, and the guest is not to.
	signal.Ignore(unix.SIGPIPE)
	unix.CloseOnExec(inletFD)
	unix.CloseOnExec(arrivedFD)
	arrived := os.NewFile(arrivedFD, "arrived")
	defer arrived.Close()
	f := os.NewFile(inletFD, "inlet")
	l, err := net.FileListener(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	inlet, ok := l.(*net.UnixListener)
	if !ok {
		return fmt.Errorf("%s is for godwit's own use", inletVariable)
	}
	defer inlet.Close()
	n, err := openInlets()
	if err != nil {
		return err
	}
	defer n.close()
	defer func() { _ = n.remove(id) }()
	r, err := newReceiver(o)
	if err != nil {
		return err
	}
	defer r.sys.Close()
	r.background = true
	return r.takePassed(ctx, inlet, arrived)
}

// takePassed takes the connections of one migration, and leads its guest to its end.
func (r *receiver) takePassed(ctx context.Context, inlet *net.UnixListener, arrived *os.File) error {
	waiting, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer stop()
	serving, end := context.WithCancel(ctx)
	taking := make(chan struct{})
	// Any connection may be of use: at the first look after it there is a guest on its
	// way, or the question was answered.
	idle := time.NewTimer(idleTime)
	go func() {
		defer close(taking)
		r.acceptAll(serving, inlet, func() { idle.Reset(idleTime) })
	}()
	over := func() {
		end()
		_ = inlet.Close()
		<-taking
	}
	for {
		select {
		case <-waiting.Done():
			over()
			return errors.New("interrupted; the guest did not come")
		case <-idle.C:
			if !r.busy() {
				over()
				return nil
			}
			idle.Reset(idleTime)
		case a := <-r.came:
			stop()
			// Nobody has to listen.
			_, _ = arrived.Write([]byte{1})
			err := a.run()
			over()
			return errors.Join(err, a.close())
		}
	}
}

// acceptAll takes connections until the socket is closed, and waits until they are not
// needed any more.
func (r *receiver) acceptAll(ctx context.Context, inlet *net.UnixListener, came func()) {
	server := r.server()
	var taking sync.WaitGroup
	defer taking.Wait()
	for {
		c, err := inlet.AcceptUnix()
		if err != nil {
			return
		}
		came()
		taking.Go(func() {
			if conn, p, err := acceptPassed(c); err == nil {
				server.Take(ctx, conn, p)
			}
		})
	}
}
