package tap

import (
	"crypto/rand"
	"unsafe"

	"golang.org/x/sys/unix"
)

// standAside gives an interface of the host a random address with the highest first byte
// that there is for local ones. A bridge takes the lowest address of its ports for its
// own, which must not change when guests come and go: the bridge's is that of this host.
func standAside(s int, name string) error {
	// struct ifreq with a struct sockaddr (netdevice(7)).
	var r struct {
		name    [unix.IFNAMSIZ]byte
		family  uint16
		address [14]byte
		_       [8]byte
	}
	copy(r.name[:unix.IFNAMSIZ-1], name)
	r.family = unix.ARPHRD_ETHER
	_, _ = rand.Read(r.address[1:6]) // never fails
	r.address[0] = 0xfe
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCSIFHWADDR, uintptr(unsafe.Pointer(&r)))
	if errno != 0 {
		return errno
	}
	return nil
}
