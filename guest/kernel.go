package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Kernel is a prepared guest kernel. Its files stay where they are until a
// kernel of the same version is prepared again.
type Kernel struct {
	// Version as `uname -r` prints it.
	Version string
	// Path of the bzImage.
	Path string
	// ModulesDir holds the modules as NAME.ko, uncompressed.
	ModulesDir string
}

// Options say which kernel to prepare.
type Options struct {
	// Cache is the folder to keep it in; CacheDir if empty.
	Cache string
	// Host takes the kernel that this machine runs instead of the
	// distribution's cloud kernel.
	Host bool
	// Progress gets a line about each step that takes time or changes
	// the system; nil for none.
	Progress io.Writer
}

func (o Options) say(format string, args ...any) {
	if o.Progress != nil {
		fmt.Fprintf(o.Progress, format+"\n", args...)
	}
}

func (o Options) cache() (string, error) {
	if o.Cache != "" {
		return filepath.Abs(o.Cache)
	}
	return CacheDir()
}

// CachedKernel is the kernel that FetchKernel prepared last. The error wraps
// ErrNotCached if there is none.
func CachedKernel() (Kernel, error) {
	cache, err := CacheDir()
	if err != nil {
		return Kernel{}, err
	}
	return cachedKernel(cache)
}

func cachedKernel(cache string) (Kernel, error) {
	version, err := os.Readlink(filepath.Join(cache, "kernels", "current"))
	if err != nil {
		return Kernel{}, fmt.Errorf("guest kernel in %s: %w", cache, ErrNotCached)
	}
	k := kernelAt(cache, version)
	if _, err := os.Stat(k.Path); err != nil {
		return Kernel{}, fmt.Errorf("guest kernel %s: %w", k.Path, ErrNotCached)
	}
	return k, nil
}

func kernelAt(cache, version string) Kernel {
	dir := filepath.Join(cache, "kernels", version)
	return Kernel{
		Version:    version,
		Path:       filepath.Join(dir, "vmlinuz"),
		ModulesDir: filepath.Join(dir, "modules"),
	}
}

// Dir is the cache folder of this kernel and its images.
func (k Kernel) Dir() string { return filepath.Dir(k.Path) }

// FetchKernel prepares a guest kernel in the cache and makes it the current
// one. On a system with apt it is the kernel for virtual machines that the
// distribution offers (which may need `apt-get update`, as root or with sudo);
// elsewhere, or with Options.Host, the kernel that this machine runs itself.
func FetchKernel(ctx context.Context, o Options) (Kernel, error) {
	cache, err := o.cache()
	if err != nil {
		return Kernel{}, err
	}
	kernels := filepath.Join(cache, "kernels")
	if err := os.MkdirAll(kernels, 0o755); err != nil {
		return Kernel{}, fmt.Errorf("kernel cache: %w", err)
	}
	// In the cache itself, so that the result can be renamed into place.
	temp, err := os.MkdirTemp(kernels, "fetch-")
	if err != nil {
		return Kernel{}, fmt.Errorf("kernel cache: %w", err)
	}
	defer os.RemoveAll(temp)

	files, err := findKernel(ctx, o, temp)
	if err != nil {
		return Kernel{}, err
	}
	staged := filepath.Join(temp, "staged")
	if err := files.stage(ctx, staged); err != nil {
		return Kernel{}, fmt.Errorf("prepare kernel %s: %w", files.version, err)
	}
	k := kernelAt(cache, files.version)
	if err := replaceDir(staged, k.Dir()); err != nil {
		return Kernel{}, fmt.Errorf("prepare kernel %s: %w", files.version, err)
	}
	if err := replaceLink(files.version, filepath.Join(kernels, "current")); err != nil {
		return Kernel{}, fmt.Errorf("prepare kernel %s: %w", files.version, err)
	}
	o.say("guest kernel %s is in %s", k.Version, k.Dir())
	return k, nil
}

// findKernel finds the files of a kernel, unpacked in temp or in place.
func findKernel(ctx context.Context, o Options, temp string) (kernelFiles, error) {
	if o.Host {
		return runningKernel()
	}
	if hasApt() {
		return aptKernel(ctx, o, temp)
	}
	o.say("no apt on this system: taking the kernel that it runs itself")
	files, err := runningKernel()
	if err != nil {
		return files, fmt.Errorf("%w: on this system give the path of a kernel with --kernel", err)
	}
	return files, nil
}

// kernelFiles says where the files of one kernel lie before they are staged.
type kernelFiles struct {
	version string
	vmlinuz string
	config  string // may not exist
	modules string // lib/modules/VERSION
}

// kernelIn finds the kernel below root, a system or an unpacked package.
func kernelIn(root string) (kernelFiles, error) {
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil {
		return kernelFiles{}, err
	}
	if len(images) != 1 {
		return kernelFiles{}, fmt.Errorf("want one boot/vmlinuz-* in the kernel package, found %d", len(images))
	}
	return filesOf(root, filepath.Base(images[0])[len("vmlinuz-"):]), nil
}

// filesOf are the files of a kernel version below root.
func filesOf(root, version string) kernelFiles {
	modules := filepath.Join(root, "lib", "modules", version)
	if _, err := os.Stat(modules); err != nil {
		// Packages of systems with a merged /usr.
		modules = filepath.Join(root, "usr", "lib", "modules", version)
	}
	return kernelFiles{
		version: version,
		vmlinuz: filepath.Join(root, "boot", "vmlinuz-"+version),
		config:  filepath.Join(root, "boot", "config-"+version),
		modules: modules,
	}
}

// runningKernel are the files of the kernel that this machine runs.
func runningKernel() (kernelFiles, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return kernelFiles{}, fmt.Errorf("uname: %w", err)
	}
	files := filesOf("/", unix.ByteSliceToString(u.Release[:]))
	f, err := os.Open(files.vmlinuz)
	switch {
	case errors.Is(err, os.ErrPermission):
		return kernelFiles{}, fmt.Errorf("this machine's kernel: %w: try again as root", err)
	case err != nil:
		return kernelFiles{}, fmt.Errorf("this machine's kernel: %w", err)
	}
	return files, f.Close()
}

// stage copies what the cache keeps of a kernel into the new folder dir.
func (files kernelFiles) stage(ctx context.Context, dir string) error {
	modules := filepath.Join(dir, "modules")
	if err := os.MkdirAll(modules, 0o755); err != nil {
		return err
	}
	if err := copyFile(files.vmlinuz, filepath.Join(dir, "vmlinuz")); err != nil {
		return err
	}
	if err := copyFile(files.config, filepath.Join(dir, "config")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return stageModules(ctx, files.modules, modules)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// EnsureKernel is CachedKernel, or FetchKernel if there is none yet.
func EnsureKernel(ctx context.Context, o Options) (Kernel, error) {
	cache, err := o.cache()
	if err != nil {
		return Kernel{}, err
	}
	k, err := cachedKernel(cache)
	if errors.Is(err, ErrNotCached) {
		return FetchKernel(ctx, o)
	}
	return k, err
}
