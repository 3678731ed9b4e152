package uffd

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// layout is how a mapping stands in the message to a handler, which is Firecracker's
// (docs/snapshotting/handling-page-faults-on-snapshot-resume.md there). The page size
// is in bytes in both fields.
type layout struct {
	Addr        uint64 `json:"base_host_virt_addr"`
	Size        uint64 `json:"size"`
	Offset      uint64 `json:"offset"`
	PageSize    uint64 `json:"page_size"`
	PageSizeKiB uint64 `json:"page_size_kib"`
}

// maxMessage bounds the message, in bytes: that of maxMappings fits.
const maxMessage = 16 << 10

// Handler is the process that serves this one's memory. Wait and Close may be called at
// the same time.
type Handler struct {
	conn    *net.UnixConn
	process *os.File // a pidfd, nil if it cannot be had
	closed  chan struct{}
}

// Connect gives the userfaultfd of this process to a handler, which listens at a
// socket's path, and tells it of the mappings. The handler serves them from then on. Keep
// the connection for as long as the guest lives: a handler may tell by its end that the
// guest is gone, and may use it to ask who the guest is (SO_PEERCRED).
func Connect(path string, fd *FD, mappings []Mapping) (*Handler, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("connect to the handler of page faults: %w", err)
	}
	if err := send(conn, fd, mappings); err != nil {
		return nil, errors.Join(fmt.Errorf("tell the handler of page faults at %s of the guest's memory: %w", path, err), conn.Close())
	}
	// Without it we do not learn of the handler's end, and that is all.
	process, _ := peer(conn)
	return &Handler{conn, process, make(chan struct{})}, nil
}

// peer is the process that listens at the other end.
func peer(conn *net.UnixConn) (*os.File, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	pid := 0
	controlErr := raw.Control(func(fd uintptr) {
		var c *unix.Ucred
		if c, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(c.Pid)
		}
	})
	if err = errors.Join(controlErr, err); err != nil {
		return nil, err
	}
	pidfd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(pidfd), "handler"), nil
}

// ErrHandlerEnded is what Handler.Wait has waited for.
var ErrHandlerEnded = errors.New("the handler of page faults has ended: pages that it has not brought are lost")

// Wait returns ErrHandlerEnded when the handler has ended, and nil when Close was called
// before. A handler may close its end of the connection and serve on.
func (h *Handler) Wait() error {
	var p [64]byte
	for err := error(nil); err == nil; {
		_, err = h.conn.Read(p[:]) // what it says is nothing to us
	}
	if h.process != nil {
		raw, err := h.process.SyscallConn()
		if err == nil && raw.Read(ended) == nil {
			select {
			case <-h.closed: // it may have ended for that
				return nil
			default:
				return ErrHandlerEnded
			}
		}
	}
	<-h.closed
	return nil
}

// ended tells whether a process has, by its pidfd.
func ended(pidfd uintptr) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
	return err == nil && n == 1
}

// Close ends the connection. It is called once.
func (h *Handler) Close() error {
	close(h.closed)
	err := h.conn.Close()
	if h.process != nil {
		err = errors.Join(err, h.process.Close())
	}
	return err
}

func send(conn *net.UnixConn, fd *FD, mappings []Mapping) error {
	layouts := make([]layout, len(mappings))
	for i, m := range mappings {
		layouts[i] = layout{m.Addr, m.Size, m.Offset, m.PageSize, m.PageSize}
	}
	text, err := json.Marshal(layouts)
	if err != nil {
		return err
	}
	// A handler reads once.
	_, _, err = conn.WriteMsgUnix(text, unix.UnixRights(fd.fd), nil)
	return err
}

// Receive is what a handler does with a connection: it takes the userfaultfd and the
// mappings of memory that has size bytes, which mappings must not go beyond.
func Receive(conn *net.UnixConn, size uint64) (*FD, []Mapping, error) {
	fd, mappings, err := receive(conn, size)
	if err != nil {
		return nil, nil, fmt.Errorf("receive a guest's memory to serve: %w", err)
	}
	return fd, mappings, nil
}

func receive(conn *net.UnixConn, size uint64) (_ *FD, _ []Mapping, err error) {
	text, rights := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4))
	n, nRights, flags, _, err := conn.ReadMsgUnix(text, rights)
	if err != nil {
		return nil, nil, err
	}
	file, err := received(rights[:nRights])
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close())
		}
	}()
	if n == maxMessage || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return nil, nil, fmt.Errorf("a message of more than one descriptor and %d bytes", maxMessage)
	}
	mappings, err := decode(text[:n], size)
	if err != nil {
		return nil, nil, err
	}
	fd, err := FromFile(file)
	return fd, mappings, err
}

// decode reads the message.
func decode(text []byte, size uint64) ([]Mapping, error) {
	var layouts []layout
	if err := json.Unmarshal(text, &layouts); err != nil {
		return nil, fmt.Errorf("list of mappings: %w", err)
	}
	mappings := make([]Mapping, len(layouts))
	for i, l := range layouts {
		if l.PageSize == 0 { // an old Firecracker
			l.PageSize = l.PageSizeKiB
		}
		mappings[i] = Mapping{l.Addr, l.Size, l.Offset, l.PageSize}
	}
	end, _, err := check(mappings)
	if err == nil && end > size {
		err = fmt.Errorf("it wants %d bytes of memory, and there are %d", end, size)
	}
	return mappings, err
}

// received is the one descriptor of a control message.
func received(control []byte) (*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, err
	}
	var fds []int
	for i := range messages {
		more, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		fds = append(fds, more...)
	}
	if len(fds) != 1 {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		return nil, fmt.Errorf("%d descriptors, want one userfaultfd", len(fds))
	}
	unix.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "userfaultfd"), nil
}
