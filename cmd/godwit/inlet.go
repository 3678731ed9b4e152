package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/godwit-vmm/godwit/internal/rundir"
	"github.com/godwit-vmm/godwit/migrate/stream"
	"golang.org/x/sys/unix"
)

// A process that listens for many guests passes each connection on to the process of its
// migration, as a descriptor on a unix socket that has the migration's ID for a name. The
// sockets outlive the process that listens: the next one finds by them the guests that
// came to the former, and a source that has not heard that its guest runs here does.

// inletFolder is where they are, among the folders of running guests.
const inletFolder = ".receive"

// inlets is the folder, which is open: its path may be too long for sockets.
type inlets struct{ dir *os.File }

func openInlets() (*inlets, error) {
	base, err := rundir.Base()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(base, inletFolder)
	const others = 0o077
	if err := rundir.OwnFolder(path, others); err != nil {
		return nil, fmt.Errorf("folder of migrations: %w", err)
	}
	dir, err := os.Open(path)
	return &inlets{dir}, err
}

func (n *inlets) close() error { return n.dir.Close() }

func (n *inlets) path(id stream.ID) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", n.dir.Fd(), id)
}

// listen makes the socket of a migration.
func (n *inlets) listen(id stream.ID) (*net.UnixListener, error) {
	l, err := listenAlone(n.path(id))
	if err != nil {
		return nil, err
	}
	inlet := l.(*net.UnixListener)
	inlet.SetUnlinkOnClose(false)
	return inlet, nil
}

// remove removes it.
func (n *inlets) remove(id stream.ID) error { return os.Remove(n.path(id)) }

// sweep removes what processes have left that were killed.
func (n *inlets) sweep() error {
	files, err := n.dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, file := range files {
		var id stream.ID
		if id.UnmarshalText([]byte(file)) != nil {
			continue
		}
		// Who listens took the socket over from nobody, and is asked nothing.
		if l, err := n.listen(id); err == nil {
			_ = errors.Join(n.remove(id), l.Close())
		}
	}
	return nil
}

// errNoInlet says that no process takes part in a migration.
var errNoInlet = errors.New("no process takes part in this migration")

// pass passes a connection on whose preamble was read. The caller closes its own.
func (n *inlets) pass(conn syscall.Conn, p stream.Preamble) error {
	c, err := net.DialTimeout("unix", n.path(p.ID), dialTimeout)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return errNoInlet
	}
	if err != nil {
		return err
	}
	defer c.Close()
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) {
		_, _, sent = c.(*net.UnixConn).WriteMsgUnix(text, unix.UnixRights(int(fd)), nil)
	})
	return errors.Join(err, sent)
}

const (
	// maxPassed bounds the text of a preamble.
	maxPassed = 1 << 10
	// passTime is how long the process that listens may take to pass a connection on.
	passTime = 10 * time.Second
)

// acceptPassed takes a connection that was passed on from one of the socket.
func acceptPassed(c *net.UnixConn) (net.Conn, stream.Preamble, error) {
	defer c.Close()
	var p stream.Preamble
	if err := c.SetReadDeadline(time.Now().Add(passTime)); err != nil {
		return nil, p, err
	}
	text, rights := make([]byte, maxPassed), make([]byte, unix.CmsgSpace(4))
	n, k, _, _, err := c.ReadMsgUnix(text, rights)
	if err != nil {
		return nil, p, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:k])
	if err != nil || len(messages) != 1 {
		return nil, p, errors.Join(err, errors.New("no connection was passed on"))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, p, errors.Join(err, errors.New("no connection was passed on"))
	}
	f := os.NewFile(uintptr(fds[0]), "connection")
	defer f.Close()
	if err := json.Unmarshal(text[:n], &p); err != nil {
		return nil, p, fmt.Errorf("the preamble of a connection that was passed on: %w", err)
	}
	conn, err := net.FileConn(f)
	return conn, p, err
}
