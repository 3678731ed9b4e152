package main

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// uevents is a socket on which the kernel tells about devices that come and go.
type uevents struct{ socket int }

func openUevents() (uevents, error) {
	socket, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return uevents{}, fmt.Errorf("device events: %w", err)
	}
	// Group 1 has the kernel's own events.
	if err := unix.Bind(socket, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(socket)
		return uevents{}, fmt.Errorf("device events: %w", err)
	}
	return uevents{socket}, nil
}

func (u uevents) close() { unix.Close(u.socket) }

// wait returns when something has happened to a device, or after the timeout.
func (u uevents) wait(timeout time.Duration) error {
	if err := pollFor(u.socket, timeout); err != nil {
		return fmt.Errorf("device events: %w", err)
	}
	// What it was does not matter, nor whether some of it was lost.
	message := make([]byte, 8192)
	for {
		_, _, err := unix.Recvfrom(u.socket, message, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS):
			return fmt.Errorf("device events: %w", err)
		}
	}
}

// pollFor returns when a file descriptor can be read, or after the timeout.
func pollFor(fd int, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for {
		ms := int(max(0, time.Until(deadline)+time.Millisecond-1) / time.Millisecond)
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, ms)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
