package initramfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/u-root/gobusybox/src/pkg/golang"
	mkcpio "github.com/u-root/mkuimage/cpio"
	"github.com/u-root/mkuimage/uimage"
	"github.com/u-root/mkuimage/uimage/initramfs"
	"github.com/u-root/uio/llog"

	"github.com/godwit-vmm/godwit/guest"
)

// uRoot is the module of the commands.
const uRoot = "github.com/u-root/u-root"

// commands are those of u-root's core commands that a guest gets. The shell is
// guest/sh, and init does the work of nproc, poweroff, reboot and modprobe.
func commands() []string {
	return strings.Fields(`
		basename cat chmod chroot cmp comm cp date dd df dirname dmesg du echo false find free
		grep gzip head hexdump hostname hwclock id insmod io ip kill ln losetup ls lsfd lsmod
		md5sum mkdir mkfifo mknod mktemp more mount msr mv netcat netstat nohup pci pidof ping
		printenv ps pwd readlink realpath rm rmmod seq shasum shutdown sleep sort strace strings
		stty switch_root sync tail tar tee time timeout touch tr true truncate tty umount uname
		uniq unshare uptime watchdog wc wget which xargs yes`)
}

// buildTags keep the commands off the C library.
func buildTags() []string { return []string{"netgo", "osusergo"} }

// commandsArchive gives the archive with the commands, from the cache or newly
// built.
func commandsArchive(ctx context.Context, o Options) ([]byte, error) {
	dir, version, err := uRootModule(ctx)
	if err != nil {
		return nil, err
	}
	toolchain, err := output(goCommand(ctx, "version"))
	if err != nil {
		return nil, err
	}
	key := sha256.Sum256([]byte(strings.Join([]string{
		version, toolchain, strings.Join(commands(), " "), strings.Join(buildTags(), " "),
	}, "\n")))
	path := filepath.Join(o.Cache, "u-root", fmt.Sprintf("%x.cpio", key[:8]))
	if archive, err := os.ReadFile(path); !errors.Is(err, os.ErrNotExist) {
		return archive, err
	}
	o.say("building %d commands of u-root %s for the guest's initramfs (half a minute, then cached)", len(commands()), version)
	archive, err := buildCommands(o, dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return archive, guest.ReplaceFile(path, archive)
}

// uRootModule finds the source of u-root that go.mod asks for, and its version.
func uRootModule(ctx context.Context) (dir, version string, err error) {
	// Download says nothing if the module is there, and fails with a
	// reason if it cannot be had.
	if _, err := output(goCommand(ctx, "mod", "download", uRoot)); err != nil {
		return "", "", err
	}
	out, err := output(goCommand(ctx, "list", "-m", "-f", "{{.Dir}} {{.Version}}", uRoot))
	if err != nil {
		return "", "", err
	}
	dir, version, ok := strings.Cut(out, " ")
	if !ok || dir == "" {
		return "", "", fmt.Errorf("source of %s: go list says %q", uRoot, out)
	}
	return dir, version, nil
}

func buildCommands(o Options, source string) ([]byte, error) {
	temp, err := os.MkdirTemp("", "godwit-u-root-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temp)
	var paths []string
	for _, c := range commands() {
		paths = append(paths, filepath.Join(source, "cmds", "core", c))
	}
	result := mkcpio.InMemArchive()
	err = uimage.Create(llog.New(slog.LevelWarn, func(format string, args ...any) { o.say(format, args...) }),
		uimage.WithEnv(
			golang.DisableCGO(),
			golang.WithGOOS("linux"),
			golang.WithGOARCH("amd64"),
			golang.WithBuildTag(buildTags()...),
			// In u-root's own module, whose go.mod has all that its
			// commands need.
			golang.WithWorkingDir(source),
		),
		uimage.WithBusyboxCommands(paths...),
		uimage.WithTempDir(temp),
		uimage.WithSkipLDD(),
		uimage.WithOutput(&initramfs.Archive{Archive: result}),
	)
	if err != nil {
		return nil, err
	}
	var archive bytes.Buffer
	w := mkcpio.Newc.Writer(&archive)
	err = mkcpio.CopyAndFinish(w, result.Reader())
	return archive.Bytes(), err
}
